"""The page of differences, docs/api_differences.md."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from bench.compare_api.asked import Asked
from bench.compare_api.differences import DIFFERENCES
from bench.compare_api.heard import Heard

PAGE = Path(__file__).parents[2] / "docs" / "api_differences.md"
HEADING = """# Where the API differs from stock vLLM

Made by `make compare-api`, which asks stock vLLM {version} and this service {number} requests on
the same checkpoint: message lists, contents, images, every field, structured output, tools,
completions, responses, Anthropic's messages. {same} have the same answer: the same text, calls and
token counts, or a refusal by both, whatever its status. {differ} differ, each for a reason.
[vllm_fields.md](vllm_fields.md) has all routes and fields, [refusals.md](refusals.md) whom each
refusal protects.

An answer is shown by its choices and the numbers of its tokens, a refusal by its status.
"""
WIDTH = 100
TABLE = """
| request | vLLM | here |
|---|---|---|
"""

Pairs = Sequence[tuple[Asked, Heard, Heard]]


def page(pairs: Pairs, version: str) -> str:
    """The text of the page; it lacks requests that differ and have no argument."""
    differing = {a.name: (t, o) for a, t, o in pairs if not t.same(o)}
    text = HEADING.format(
        version=version,
        number=len(pairs),
        same=len(pairs) - len(differing),
        differ=len(differing),
    )
    for difference in DIFFERENCES:
        argument = textwrap.fill(difference.argument, WIDTH, break_on_hyphens=False)
        text += f"\n## {difference.title}\n\n{argument}\n{TABLE}"
        for name in difference.requests:
            theirs, ours = differing.get(name, (None, None))
            text += f"| {_cell(name)} | {_cell(theirs)} | {_cell(ours)} |\n"
    return text


def _cell(shown: object) -> str:
    # A vertical bar ends a cell, also within code.
    return str(shown).replace("|", "\\|")
