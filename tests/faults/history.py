"""The requests, their outcomes and times, and the fault that there was at the time."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.faults.questions import Question

# Outcomes besides the names of gRPC's codes.
FINISHED = "FINISHED"
# We do so on purpose.
LEFT = "LEFT"
# No end came long after the deadline.
HUNG = "HUNG"
# A stream ended as if it were whole, and was not.
TRUNCATED = "TRUNCATED"
# The seconds that an answer may take with nothing amiss.
CALM_SECONDS = 10.0


# The other kinds of answers: two choices, log-probabilities, a text of a structure or a call of a
# tool that leave no choice, and pictures that are uploaded first.
Form = Literal["plain", "choices", "logprobs", "structure", "tool", "upload"]
CHOICES = 2


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to be made.

    Attributes:
        pictures: in the place of the question's own, and equal to them in every pixel.
        cancel_after: deltas, after which the client goes away.
        is_foreign: pictures are named by a tenant who has never shown them.
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
    form: Form = "plain"


@dataclass(slots=True)
class Record:
    """A request that was made, on the monotonic clock.

    Attributes:
        digests: of its pictures, in hexadecimal.
        tokens: that came; none over HTTP, which does not tell them.
        outcome: FINISHED, LEFT, HUNG, TRUNCATED or the name of a gRPC code.
        reason: what the service says of its status; empty if that is gRPC's own or the
            connection's.
        cached: whether each picture was encoded already; None if it is not told.
        cached_tokens: of the prompt, that the engine had computed before; None as above.
        others: texts of the choices behind the first.
        logprobs: of each token.
        call: the name of the tool that was called, and its arguments.
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
    form: Form = "plain"
    cached_tokens: int | None = None
    others: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    call: tuple[str, str] | None = None

    @property
    def is_continued(self) -> bool:
        """Whether another decoder goes on with it where its own is lost."""
        return self.form in ("plain", "upload")

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
            form=ask.form,
        )


@dataclass(slots=True)
class Window:
    """The time of a fault: from its begin to its end, and on to what it took to recover.

    Attributes:
        allows: codes that a request may end with that was under way at some time of it.
        gateway: the one whose requests alone may; None is any.
        pictures_only: only those with pictures may.
        allows_once: codes that one may end with besides that goes on at no other decoder.
        allows_uploads: codes that one with an upload may end with besides.
        allows_images: codes that one with images may end with besides.
        most_seconds: that a request may take which was under way at some time of it.
        encodes_twice: an embedding may be made whose reply is lost, so that a picture is cached
            that nobody knows of.
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
    allows_once: frozenset[str] = frozenset()
    allows_uploads: frozenset[str] = frozenset()
    allows_images: frozenset[str] = frozenset()
    most_seconds: float = CALM_SECONDS
    lingers: float = 0.0
    ended: float | None = None
    recovered: float | None = None

    def overlaps(self, record: Record) -> bool:
        over = float("inf") if self.recovered is None else self.recovered + self.lingers
        return record.began <= over and record.ended >= self.began

    def may_end_with(self, record: Record) -> frozenset[str]:
        if not self.overlaps(record):
            return frozenset()
        allows = self.allows
        if self.gateway not in (None, record.gateway) or (
            self.pictures_only and not record.digests
        ):
            allows = frozenset()
        if not record.is_continued:
            allows |= self.allows_once
        if self.allows_once and record.deltas and record.digests:
            # The decoder that is lost may have held the only copy of an image that was named.
            allows |= {"NOT_FOUND"}
        if record.form == "upload":
            allows |= self.allows_uploads
        if record.digests:
            allows |= self.allows_images
        return allows


@dataclass(slots=True)
class History:
    """`pace` is how many times longer than on a machine of its own anything may take here."""

    records: list[Record] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    pace: float = 1.0

    def write(self, path: Path) -> None:
        """A JSON object a line, in the order of their begin."""
        both: Iterable[Any] = (*self.records, *self.windows)
        with path.open("w", encoding="utf-8") as file:
            for each in sorted(both, key=lambda each: each.began):
                fields = asdict(each) | {"kind": type(each).__name__.lower()}
                file.write(json.dumps(fields, default=sorted) + "\n")
