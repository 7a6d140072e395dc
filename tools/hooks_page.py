"""Writes docs/hooks.md from the hooks' own headers.

python -m tools.hooks_page [--check]: with --check, fails if the page is out of date.

In both cases, a hook without its two tests, *still there* and *still needed*, is an error.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixtral_core.hooks import FIELDS, header
from pixtral_decoder.vllm_hooks.supported import TRIED
from tools.generated_page import write_or_check

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "hooks.md"
# Folders of the packages, and of their tests.
PACKAGES = {
    "core/pixtral_core": "tests/core",
    "gateway/pixtral_gateway": "tests/gateway",
    "services/encoder/pixtral_encoder": "tests/encoder",
    "services/decoder/pixtral_decoder": "tests/decoder",
}
STILL_THERE = "test_still_there"
STILL_NEEDED = "test_still_needed"

HEAD = """\
# Hooks

`python -m tools.hooks_page` makes this page from the hooks' own headers. A hook is a module that
uses a part of a library that the library does not promise to keep. Each hook is a file of its own,
which lists every name that it touches, and has two tests:

- *Still there* looks for those names, without an engine. The check also runs at the start of a
process:
  a library that has changed stops the start with a sentence that names the hook and the missing
  name. `pixtral-serve doctor` says the same for vLLM.
- *Still needed* shows the fault of the installed library that the hook corrects. It fails when
upstream
  has corrected it; then remove the hook.

When *still there* fails after an upgrade:

1. Read the hook's header.
2. Find in the library's changes what has become of the name.
3. Repair or remove the hook.
4. Run its tests, and those that its test file names for a whole engine.

Until then, install a version from the table.

Some code uses a library closely and needs no hook, because the library documents what it uses:
prometheus_client's multiprocess mode and its server, xgrammar's compiler and matcher, and vLLM's
engine arguments, inputs, sampling parameters and AsyncLLM.

## Versions of vLLM

With another version the decoder warns and starts, unless a hook misses something. vLLM runs its
model runner V2 on a GPU, and V1 on a CPU. A test on a CPU shows nothing of V2;
`tests.decoder.on_gpu` does.
"""


class BadHook(Exception):
    """A hook's header lacks a field, or the hook lacks a test; the message names it."""


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook. `path` is relative to the root."""

    path: str
    line: str
    fields: dict[str, str]
    tests: str
    still_needed: str


def hooks() -> Iterator[Hook]:
    """All hooks. Raises BadHook."""
    for package, tests in PACKAGES.items():
        folder = ROOT / package
        for file in sorted(folder.rglob("*.py")):
            docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
            fields = dict(header(docstring))
            if "Upstream" in fields:
                path = file.relative_to(ROOT).as_posix()
                if missing := [name for name in FIELDS if name not in fields]:
                    raise BadHook(f"{path}: no {missing[0]} in its header")
                relative = file.relative_to(folder)
                test = ROOT / tests / relative.parent / f"test_{relative.name}"
                line = docstring.splitlines()[0]
                yield Hook(path, line, fields, *_tests(path, test))


def _tests(path: str, test: Path) -> tuple[str, str]:
    where = test.relative_to(ROOT).as_posix()
    if not test.is_file():
        raise BadHook(f"{path}: no {where}")
    functions = [
        node.name
        for node in ast.parse(test.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for name in (STILL_THERE, STILL_NEEDED):
        if not any(function.startswith(name) for function in functions):
            raise BadHook(f"{path}: no {name} in {where}")
    return where, next(name for name in functions if name.startswith(STILL_NEEDED))


def page() -> str:
    """The whole page. Raises BadHook."""
    found = list(hooks())
    lines = [HEAD, "| version | tried with |\n|---|---|"]
    lines += [f"| {version} | {tried} |" for version, tried in TRIED.items()]
    lines.append("\n## Hooks by library\n\n| hook | library | versions | still needed |")
    lines.append("|---|---|---|---|")
    for hook in found:
        needed = hook.still_needed.removeprefix(f"{STILL_NEEDED}_").replace("_", " ")
        library, versions = hook.fields["Library"], hook.fields["Versions"]
        lines.append(
            f"| [{Path(hook.path).stem}](#{_anchor(hook)}) | {library} | {versions} | {needed} |"
        )
    for hook in found:
        fields = hook.fields
        upstream = fields["Upstream"]
        link, _, rest = upstream.partition(" ")
        if link.startswith("https://"):
            upstream = (
                f"[{link.removeprefix('https://github.com/')}]({link}){f' {rest}' if rest else ''}"
            )
        lines += [
            f"\n### {_anchor(hook)}\n",
            f"`{hook.path}`, tested by `{hook.tests}`\n",
            f"{hook.line}\n",
            f"- Changes: {fields['Changes']}",
            f"- Why: {fields['Why']}",
            f"- Upstream: {upstream}",
        ]
    return "\n".join(lines) + "\n"


def _anchor(hook: Hook) -> str:
    return Path(hook.path).stem


def main(arguments: list[str]) -> int:
    try:
        made = page()
    except BadHook as error:
        print(error)
        return 1
    return write_or_check(PAGE, made, "tools.hooks_page", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
