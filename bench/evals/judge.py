"""The judge of MM-MT-Bench: another model rates an answer beside its reference, from 1 to 10.

The prompt is that of mistral-evals with its intention: in its code
(`eval/tasks/mm_mt_bench.py`, commit 94160a0c) the loop that shows the conversation runs over a
message's keys, so that the judge gets the words "role" and "content" in place of the question and
its image. Here it gets both.
"""

import re
from collections.abc import Sequence
from typing import Final

from bench.evals.prompts import JUDGE
from bench.evals.questions import Message, Question, parts

MAX_TOKENS: Final = 2048
# With temperature 0 another judgement seldom has a rating where the first has none.
TRIES: Final = 3
_RATING: Final = re.compile(r"\[\[(\d+\.?\d*)\]\]")


def judge_messages(
    question: Question, answer: str, *, with_images: bool = True
) -> tuple[Message, ...]:
    """The conversation with the judge: each turn with its reference, and the answer at the end."""
    users = [each for each in question.messages if each["role"] == "user"]
    earlier = [each["content"] for each in question.messages if each["role"] == "assistant"]
    content: list[Message] = [_text("<|The Start of Conversation with User|>\n\n")]
    for user, reference in zip(users, [*earlier, question.references[0]], strict=True):
        shown = [part for part in parts(user) if part["type"] == "text" or with_images]
        content += [
            _text("### User:\n"),
            *shown,
            _text(f"\n\n### Reference answer:\n{reference}\n\n"),
        ]
    content.append(_text(f"\n\n### Assistant's answer:\n{answer}\n\n"))
    content.append(_text("<|The End of Conversation with User|>\n\n\n"))
    return (
        {"role": "system", "content": JUDGE},
        {"role": "user", "content": _joined(content)},
    )


def rating(judgement: str) -> float | None:
    """The first "[[number]]" of a judgement; None if there is none, or it is not from 1 to 10."""
    found = _RATING.search(judgement)
    value = float(found[1]) if found else 0.0
    return value if 1 <= value <= 10 else None


def _text(text: str) -> Message:
    return {"type": "text", "text": text}


def _joined(content: Sequence[Message]) -> list[Message]:
    """Texts that follow each other are one part."""
    joined: list[Message] = []
    for part in content:
        if part["type"] == "text" and joined and joined[-1]["type"] == "text":
            joined[-1] = _text(joined[-1]["text"] + part["text"])
        else:
            joined.append(part)
    return joined
