"""The processes that a supervisor runs, as data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

# The environment variable with a file's path. A tier writes to the file how many per cent of its
# weights it has loaded.
LOADED_VARIABLE = "PIXTRAL_LOADED_FILE"


@dataclass(frozen=True, slots=True)
class Process:
    """A tier to start: `command` plus `--address-file FILE`, where the tier writes its addresses.

    `connects` maps a flag to the names of other processes. The value of the flag is the gRPC
    addresses of those processes, and this process starts when they all listen. `environment`
    overrides that of the plan.
    """

    name: str
    command: Sequence[str]
    connects: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def connections(self) -> dict[str, list[str]]:
        """`connects`, with a list of names for each flag."""
        return {
            flag: [names] if isinstance(names, str) else list(names)
            for flag, names in self.connects.items()
        }


@dataclass(frozen=True, slots=True)
class Redis:
    binary: str
    max_memory: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The processes and their environment. Logs and address files go to `directory`.

    If `redis` is set, the Redis starts first, and PIXTRAL_REDIS_URL is its URL in all processes.
    A process that still runs `grace_seconds` after SIGTERM is killed.
    """

    caller: int
    directory: str
    processes: Sequence[Process]
    redis: Redis | None
    environment: Mapping[str, str]
    grace_seconds: float

    def loaded_file(self, name: str) -> Path:
        """The file in which a process writes how many per cent of its weights it has loaded."""
        return Path(self.directory, f"{name}.loaded")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        fields = json.loads(text)
        fields["processes"] = [Process(**process) for process in fields["processes"]]
        fields["redis"] = Redis(**fields["redis"]) if fields["redis"] else None
        return cls(**fields)
