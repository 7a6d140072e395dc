"""The finished turns of a comparison, in a JSON file that is whole after each of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.one_card_report import Summary, about_run

FILE = "fleet.json"


@dataclass(slots=True)
class Results:
    """The file in `directory`.

    Attributes:
        settings: what must be the same in all turns of a file.
        about: the date, command, machine and versions of each run that has added a turn.
        runs: by the number of GPUs and the workload: `what` it is, `turns` of each side, and what
            was `predicted` of each side; see `bench.load_summary.summary`.
    """

    directory: Path
    settings: Mapping[str, Any]
    about: list[dict[str, Any]] = field(default_factory=list)
    runs: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    _has_added: bool = False

    def __post_init__(self) -> None:
        """Reads the file where there is one. Raises ValueError if it has other settings."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / FILE
        if not path.exists():
            return
        read = json.loads(path.read_text("utf-8"))
        if read["settings"] != self.settings:
            raise ValueError(
                f"{path} is of {read['settings']}, and this run of {dict(self.settings)}: "
                "name another folder with --out"
            )
        self.about, self.runs = read["about"], read["runs"]

    def turns(self, gpus: int, workload: str, side: str) -> list[Summary]:
        found: list[Summary] = self._run(gpus, workload).get("turns", {}).get(side, [])
        return found

    def add(self, gpus: int, workload: str, what: str, side: str, found: Summary) -> None:
        if not self._has_added:
            self.about.append(about_run("bench.fleet"))
            self._has_added = True
        run = self.runs.setdefault(str(gpus), {}).setdefault(workload, {"what": what, "turns": {}})
        run["turns"].setdefault(side, []).append(found)
        self._write()

    def predict(self, gpus: int, workload: str, predicted: Mapping[str, Summary]) -> None:
        """Keeps the predictions of other sides. Some turn must have been added."""
        self.runs[str(gpus)][workload].setdefault("predicted", {}).update(predicted)
        self._write()

    def _run(self, gpus: int, workload: str) -> dict[str, Any]:
        return self.runs.get(str(gpus), {}).get(workload, {})

    def _write(self) -> None:
        whole = {"settings": self.settings, "about": self.about, "runs": self.runs}
        part = self.directory / f"{FILE}.part"
        part.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
        part.rename(self.directory / FILE)
