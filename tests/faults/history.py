"""What was asked, what came of it and when; and which fault there was at the time."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.faults.questions import Question

# Outcomes besides the names of gRPC's codes.
FINISHED = "FINISHED"
# By us, on purpose.
LEFT = "LEFT"
# No end came long after the deadline.
HUNG = "HUNG"
# A stream ended as if it were whole, and was not.
TRUNCATED = "TRUNCATED"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to be made.

    Attributes:
        pictures: in the place of the question's own, and equal to them in every pixel.
        cancel_after: deltas, after which the client goes away.
        is_named: pictures are not sent, but named by their digests.
        is_foreign: named by a tenant who has never shown them.
    """

    question: Question
    pictures: tuple[bytes, ...]
    tenant: str
    gateway: int
    protocol: Literal["grpc", "http"]
    is_stream: bool
    timeout: float
    cancel_after: int | None = None
    is_foreign: bool = False


@dataclass(slots=True)
class Record:
    """A request that was made, on the monotonic clock.

    Attributes:
        digests: of its pictures, in hexadecimal.
        tokens: that came; none over HTTP, which does not tell them.
        outcome: FINISHED, LEFT, HUNG, TRUNCATED or the name of a gRPC code.
        reason: what the service says of its status; empty where that is gRPC's own or the
            connection's.
        cached: whether each picture was encoded already; None where it is not told.
    """

    question: str
    tenant: str
    gateway: int
    protocol: str
    is_stream: bool
    digests: tuple[str, ...]
    timeout: float
    is_foreign: bool
    leaves: bool
    began: float
    ended: float = 0.0
    first: float | None = None
    deltas: int = 0
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    outcome: str = HUNG
    reason: str = ""
    detail: str = ""
    finish_reason: str | None = None
    cached: tuple[bool, ...] | None = None
    counted_tokens: int | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @classmethod
    def of(cls, ask: Ask, began: float) -> "Record":
        return cls(
            ask.question.name,
            ask.tenant,
            ask.gateway,
            ask.protocol,
            ask.is_stream,
            tuple(hashlib.sha256(picture).hexdigest() for picture in ask.pictures),
            ask.timeout,
            ask.is_foreign,
            ask.cancel_after is not None,
            began,
        )


@dataclass(slots=True)
class Window:
    """The time of a fault: from its begin to its end, and on to what it took to recover.

    Attributes:
        allows: codes that a request may end with that was under way at some time of it.
        gateway: the one whose requests alone may; None is any.
        pictures_only: only those with pictures may.
        encodes_twice: an embedding may be made whose reply is lost, so that a picture is cached
            that nobody was told of.
        lingers: seconds beyond that in which it still allows: a client's own connection waits
            before it tries again.
        recovered: when every part had again done what it is there for; None: not in time.
    """

    fault: str
    began: float
    allows: frozenset[str] = frozenset()
    gateway: int | None = None
    pictures_only: bool = False
    encodes_twice: bool = False
    lingers: float = 0.0
    ended: float | None = None
    recovered: float | None = None

    def overlaps(self, record: Record) -> bool:
        over = float("inf") if self.recovered is None else self.recovered + self.lingers
        return record.began <= over and record.ended >= self.began

    def may_end_with(self, record: Record) -> frozenset[str]:
        if self.gateway not in (None, record.gateway) or (
            self.pictures_only and not record.digests
        ):
            return frozenset()
        return self.allows if self.overlaps(record) else frozenset()


@dataclass(slots=True)
class History:
    records: list[Record] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """A JSON object a line, in the order of their begin."""
        both: Iterable[Any] = (*self.records, *self.windows)
        with path.open("w", encoding="utf-8") as file:
            for each in sorted(both, key=lambda each: each.began):
                fields = asdict(each) | {"kind": type(each).__name__.lower()}
                file.write(json.dumps(fields, default=sorted) + "\n")
