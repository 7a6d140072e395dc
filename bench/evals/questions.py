"""From a row of a data set to questions, as mistral-evals asks them.

A data set is `NAME.jsonl` in the directory of data: one row a line, with the columns that the
published data set has. A column of images has the name of a file, relative to the directory.
`python -m bench.evals.convert` makes this from the published files.
"""

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from bench.evals import prompts

Row = Mapping[str, Any]
Message = dict[str, Any]

_IMAGE: Final = re.compile(r"(<image \d+>)")


class BadData(Exception):
    """A data set is not of its form; the message has file, line and reason."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request and its references.

    Images in `messages` are `{"type": "image", "image": Path}`, as the Python client takes them.
    `groups` are names of averages that the question counts in, such as its category.
    """

    id: str
    messages: tuple[Message, ...]
    references: tuple[str, ...]
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last message's own text, for a person to read."""
        return "\n".join(part["text"] for part in parts(self.messages[-1]) if "text" in part)

    @property
    def digest(self) -> str:
        """Names the request."""
        return digest(self.messages)


def digest(messages: Sequence[Message]) -> str:
    """Names a conversation, in which an image counts by its file's name and size."""
    given = json.dumps(messages, sort_keys=True, default=_file_identity)
    return hashlib.sha256(given.encode()).hexdigest()[:16]


Reader = Callable[["RowReader"], Iterator[Question]]


def read(path: Path, reader: Reader) -> Iterator[Question]:
    """The questions of a file of rows. Raises `BadData`."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TypeError("not an object")
                yield from reader(RowReader(row, path.parent, str(number)))
            except (SyntaxError, TypeError, ValueError, KeyError) as error:
                raise BadData(f"{path}:{number}: {_reason(error)}") from error


@dataclass(frozen=True, slots=True)
class RowReader:
    """One row; its methods raise `KeyError` for a column that is missing and `ValueError` for a
    value that is not of the column's form."""

    row: Row
    folder: Path
    number: str

    def text(self, column: str) -> str:
        value = self.row[column]
        if not isinstance(value, str):
            raise ValueError(f"{column} is not text")
        return value

    def image(self, column: str) -> Message:
        name = PurePosixPath(self.text(column))
        path = self.folder / name
        if name.is_absolute() or ".." in name.parts or not path.is_file():
            raise ValueError(f"{column} names no file below {self.folder}: {name}")
        return {"type": "image", "image": path}

    def answers(self, column: str) -> tuple[str, ...]:
        """One text, or a list of texts or of VQAv2's objects with an `answer`."""
        value = self.row[column]
        found = value if isinstance(value, list) else [value]
        texts = [each["answer"] if isinstance(each, dict) else each for each in found]
        if not texts or not all(isinstance(each, str) for each in texts):
            raise ValueError(f"{column} is neither text nor a list of texts")
        return tuple(texts)

    def question(self, content: Sequence[Message], references: Sequence[str]) -> Question:
        message = {"role": "user", "content": list(content)}
        return Question(self.number, (message,), tuple(references))


def chartqa(row: RowReader) -> Iterator[Question]:
    """lmms-lab/ChartQA, split test: image, question, answer."""
    content = [row.image("image"), _text(row.text("question"), prompts.CHARTQA)]
    yield row.question(content, row.answers("answer"))


def docvqa(row: RowReader) -> Iterator[Question]:
    """lmms-lab/DocVQA, configuration DocVQA, split validation: image, question, answers."""
    content = [row.image("image"), _text(row.text("question"), prompts.DOCVQA)]
    yield row.question(content, row.answers("answers"))


def vqav2(row: RowReader) -> Iterator[Question]:
    """lmms-lab/VQAv2 or HuggingFaceM4/VQAv2, split validation: image, question, answers."""
    content = [row.image("image"), _text(row.text("question"), prompts.VQAV2)]
    yield row.question(content, row.answers("answers"))


def mathvista(row: RowReader) -> Iterator[Question]:
    """AI4Math/MathVista, split testmini: decoded_image, query, choices, answer."""
    (answer,) = row.answers("answer")
    choices = row.row["choices"]
    if choices:
        answer = _letter(choices.index(answer))
    content = [row.image("decoded_image"), _text(row.text("query"), prompts.CHOICE_OR_OPEN)]
    yield row.question(content, [answer])


def mmmu(row: RowReader) -> Iterator[Question]:
    """lmms-lab/MMMU, split validation: question, question_type, options, answer, image_1 to
    image_7."""
    question = row.text("question")
    if row.text("question_type") == "multiple-choice":
        listed = enumerate(_list(row.row["options"]))
        question += "".join(f"\n{_letter(place)}. {option}" for place, option in listed)
    content: list[Message] = []
    for piece in _IMAGE.split(question):
        if _IMAGE.fullmatch(piece):
            content.append(row.image("image_" + piece.strip("<>").removeprefix("image ")))
        elif piece.strip():
            content.append({"type": "text", "text": piece})
    if content and content[-1]["type"] == "text":
        content[-1] = _text(content[-1]["text"], prompts.CHOICE_OR_OPEN)
    else:
        content.append({"type": "text", "text": prompts.CHOICE_OR_OPEN})
    answer = row.text("answer")
    yield row.question(content, _list(answer) if "[" in answer else [answer])


def mm_mt_bench(row: RowReader) -> Iterator[Question]:
    """mistralai/MM-MT-Bench, split eval: image, conversation, category. A question for each of the
    user's turns, after the references of the turns before it."""
    given = row.row["conversation"]
    turns = json.loads(given) if isinstance(given, str) else given
    messages: list[Message] = []
    for number, (user, assistant) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
        if (user["role"], assistant["role"]) != ("user", "assistant"):
            raise ValueError("conversation: user and assistant do not take turns")
        if not isinstance(assistant["content"], str):
            raise ValueError("conversation: an assistant's content is not text")
        shown = [_shown(part, row) for part in parts(user)]
        messages.append({"role": "user", "content": shown})
        yield Question(
            f"{row.number}.{number + 1}",
            tuple(messages),
            (assistant["content"],),
            {"category": row.text("category"), "turn": str(number)},
        )
        messages.append({"role": "assistant", "content": assistant["content"]})


def parts(message: Message) -> list[Message]:
    """The parts of a message's content."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _shown(part: Message, row: RowReader) -> Message:
    return row.image("image") if part["type"] == "image" else {"type": "text", "text": part["text"]}


def _text(question: str, prompt: str) -> Message:
    return {"type": "text", "text": f"{question}\n{prompt}"}


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def _list(value: object) -> list[str]:
    """A list of texts, or one as Python writes it, which MMMU has in place of a list."""
    found = ast.literal_eval(value) if isinstance(value, str) else value
    if not isinstance(found, list) or not found:
        raise ValueError(f"not a list: {value}")
    return [str(each) for each in found]


def _file_identity(path: Path) -> list[str | int]:
    return [path.name, path.stat().st_size]


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
