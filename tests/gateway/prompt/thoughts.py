"""Answers with thoughts, as tokens, in pieces, and as the gateway reads them."""

import itertools
from collections.abc import Sequence

from pixtral_gateway.checks.conversation import NO_TOOLS, Tools
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.request import Delta, FinishReason

THINK, END_THINK, CALLS, ARGS = 34, 35, 9, 32
WORD = 1000
Token = tuple[int, str]


def words(text: str) -> list[Token]:
    return [(WORD + ord(letter), letter) for letter in text]


def control(token_id: int, spelled: str, *, is_spelled: bool) -> list[Token]:
    return [(token_id, spelled if is_spelled else "")]


def answers(*, is_spelled: bool) -> dict[str, tuple[list[Token], str, str]]:
    """Tokens as the engine makes them, and what of them is thought, and what is said."""
    think = control(THINK, "[THINK]", is_spelled=is_spelled)
    end = control(END_THINK, "[/THINK]", is_spelled=is_spelled)
    return {
        "both": ([*think, *words("a b"), *end, *words("c d")], "a b", "c d"),
        "white space at the end": ([*think, *words("a \n "), *end, *words(" c")], "a", " c"),
        "no thought": (words("c d"), "", "c d"),
        "no end": ([*think, *words("a b")], "a b", ""),
        "an end alone": ([*words("c"), *end, *words("d")], "", "cd"),
        "begun twice": ([*think, *think, *words("a"), *end, *words("c")], "a", "c"),
        "thought again": (
            [*think, *words("a"), *end, *words("c"), *think, *words("b"), *end, *words("d")],
            "ab",
            "cd",
        ),
        "spelled out in text": (words("[THINK]a[/THINK]"), "", "[THINK]a[/THINK]"),
        "nothing thought": ([*think, *end, *words("c")], "", "c"),
    }


ANSWERS = {
    (name, is_spelled): answer
    for is_spelled in (False, True)
    for name, answer in answers(is_spelled=is_spelled).items()
}


def deltas(tokens: Sequence[Token], cuts: Sequence[int]) -> list[Delta]:
    """The tokens in pieces that end before each of the cuts."""
    bounds = [0, *cuts, len(tokens)]
    made = []
    for begin, end in itertools.pairwise(bounds):
        piece = tokens[begin:end]
        is_last = end == len(tokens)
        made.append(
            Delta(
                0,
                "".join(text for _, text in piece),
                [token_id for token_id, _ in piece],
                FinishReason.STOP if is_last else None,
            )
        )
    return made


def read(
    prompts: PromptEncoder,
    pieces: Sequence[Delta],
    tools: Tools = NO_TOOLS,
    *,
    is_thinking: bool = False,
) -> tuple[str, str, list[str]]:
    reader = prompts.tools.reader(tools, is_thinking=is_thinking)
    told = [reader.read(piece) for piece in pieces]
    calls = [call.name for each in told for call in each.tool_calls if call.name]
    return "".join(each.reasoning for each in told), "".join(each.text for each in told), calls


def letter(token_id: int) -> bytes:
    return chr(token_id - WORD).encode() if token_id >= WORD else b""
