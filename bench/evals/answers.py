"""A file of answers, one a line, to which a run adds and from which the next run goes on."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from bench.evals.questions import BadData


@dataclass(frozen=True, slots=True)
class Answer:
    """One line. `digest` names the request; `error` is not empty if there was no answer."""

    id: str
    digest: str
    question: str
    references: tuple[str, ...]
    answer: str
    finish_reason: str = ""
    error: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, line: str) -> Self:
        given = json.loads(line)
        return cls(**{**given, "references": tuple(given["references"])})


class AnswerFile:
    """The answers of one benchmark, by their ids; a later line replaces an earlier one.

    The last line of a run that was killed may be cut: it is removed. Raises `BadData` if another
    line cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._whole(path.read_bytes() if path.exists() else b"")
        for number, line in enumerate(whole.decode().split("\n")[:-1], 1):
            try:
                answer = Answer.read(line)
            except (ValueError, KeyError, TypeError) as error:
                raise BadData(f"{path}:{number} is not an answer: {error}") from error
            self.answers[answer.id] = answer

    def add(self, answer: Answer) -> None:
        self.answers[answer.id] = answer
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")

    def has(self, id_: str, digest: str) -> bool:
        """Whether this very request was answered."""
        found = self.answers.get(id_)
        return found is not None and found.digest == digest and not found.error

    def _whole(self, data: bytes) -> bytes:
        end = data.rfind(b"\n") + 1
        if end < len(data):
            with self.path.open("r+b") as file:
                file.truncate(end)
        return data[:end]
