"""Finds sentences that need two readings, in docs, docstrings, comments, messages and help texts.

CONTRIBUTING.md has the rule: subject, verb, object. A sentence that begins with "Of", "By" or
"What" hides its subject; so do the forms of FORMS. Docs describe the present: the forms of HISTORY
belong to CHANGELOG.md, release notes and dated benchmarks. Arguments are the files and folders to
read; none means all.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# No sentence begins with these words, except a question with "What".
BEGINNINGS = re.compile(r"[\"'(*`]*((?:of|by|what|whatever|whoever)\b)(?!-)(?!.*\?)", re.IGNORECASE)
FORMS = {
    "passive 'told'": r"\b(?:is|are|was|were|be|been) told\b",
    "passive 'had'": r"\b(?:is|are|was|were|be|been) had\b",
    "'is asked of'": r"\b(?:is|are|was|were) asked of\b",
    "a verb without its subject": r"; (?:is|are|has|have)\b",
    "a place before its verb": r"^(?:As far as|Behind (?:a|an|the) \w+ is)\b",
    "'who' without a person": r"\b(?:all|for|to) who\b",
    "a verb without its object": r"\bmade nothing\b|\btells that\b",
    "a negated noun": r"\bis no (?:permit|promise)\b",
    "an inverted clause": r"\b[Ss]o it is (?:at|in|with)\b|\b[Ff]rom the first that\b",
    "'named by'": r"\bcan be named by\b",
    "'whoever'": r"(?<!\")\b[Ww]hoever\b",
    "'but for' in place of 'except'": r"^(?!.*\bnot for\b).*\bbut for\b",
    "'passed over' in place of 'ignored'": r"\b[Pp]assed over\b",
    "'held to' in place of 'fits'": r"\b(?:is|are) (?:always )?held to\b",
    "a compressed reason": r"(?:^|, )[Ss]o (?:is|are) (?:it|they) with\b",
    "'so many' in place of the number": r"\b[Ss]o (?:many|much)\b(?!.*\b(?:as|that)\b)",
    "'where' in place of 'if'": r"\b(?:None|[Ee]mpty|False|0|[Rr]aises \w+) where\b",
    "'else' in place of 'otherwise'": r"^[Ee]lse\b",
}
HISTORY = {
    "history": r"\bearlier (?:build|version)\b|\bwas then\b|\bbuilds? before\b"
    r"|\b(?:[Pp]reviously|[Ff]ormerly)\b"
}
# For pages only. A "before" that names no event compares with a past that no reader knows.
HISTORY_OF_PAGES = {
    "'before' without an object": r"\b[Bb]efore(?=[.,;:)]|$)",
    "history": r"\b[Ss]ince then\b|\bused to (?:be|have|do|take)\b|\buntil now\b",
}
MAY_TELL_HISTORY = re.compile(r"CHANGELOG\.md|docs/(?:benchmarks|release-notes)/.*")
# Keyword arguments whose texts users read, beside those of exceptions and log records.
HELP_TEXTS = {"description", "help", "title"}
LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
ITEM = re.compile(r"^\s*(?:[-*]|\d+\.) +")


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Words without the marks around them. `line` is the number of the first line."""

    line: int
    words: str


def main() -> None:
    found = [
        f"{name}:{line}: {fault}"
        for name in files(sys.argv[1:])
        for line, fault in faults(name, (ROOT / name).read_text("utf-8"))
    ]
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))


def files(names: list[str]) -> list[str]:
    """Files with prose that git tracks or would add, except generated ones."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *names]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [
        name
        for name in sorted(listed.splitlines())
        if reader(name) and "_pb2" not in name and (ROOT / name).is_file()
    ]


def reader(name: str) -> Callable[[str], Iterable[Paragraph]] | None:
    """The function that finds the prose of a file with this name; None if there is none."""
    path = Path(name)
    return READERS.get(path.suffix or path.name)


def faults(name: str, text: str) -> Iterator[tuple[int, str]]:
    """The line and the kind of each fault in a file's prose, with the sentence."""
    read = reader(name)
    rules = [FORMS]
    if not MAY_TELL_HISTORY.fullmatch(name):
        rules += [HISTORY, HISTORY_OF_PAGES] if name.endswith(".md") else [HISTORY]
    for paragraph in read(text) if read else ():
        for sentence in re.split(r"(?<=[.!?])\s+(?=[\"'(*`]*[A-Z])", paragraph.words):
            if beginning := BEGINNINGS.match(sentence):
                yield paragraph.line, f"begins with '{beginning[1]}': {sentence}"
            for fault, form in ((f, each) for rule in rules for f, each in rule.items()):
                if re.search(form, sentence):
                    yield paragraph.line, f"{fault}: {sentence}"


def of_markdown(text: str) -> Iterator[Paragraph]:
    """Paragraphs, list items and table cells, without headings, code and heads of tables."""
    lines = text.splitlines()
    block: list[tuple[int, str]] = []
    is_code = False
    for number, line in enumerate([*lines, ""], 1):
        is_fence = line.lstrip().startswith("```")
        is_row = line.startswith("|")
        is_prose = not (is_code or is_fence or is_row or re.match(r"\s*(?:[#<]|$)", line))
        if block and (not is_prose or ITEM.match(line)):
            yield _paragraph(block)
            block = []
        if is_prose:
            block.append((number, line))
        elif is_row and not (number < len(lines) and re.match(r"\|[\s:|-]+$", lines[number])):
            yield from (_paragraph([(number, cell)]) for cell in line.split("|"))
        is_code = is_code != is_fence


def of_python(text: str) -> Iterator[Paragraph]:
    """Docstrings, comments, and the texts of exceptions, log records and help."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield from of_markdown_at(node.body[0].lineno, docstring)
        elif isinstance(node, ast.Call):
            yield from _texts_of(node)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from _blocks(
        (token.start[0], token.string.lstrip("#"))
        for token in tokens
        if token.type == tokenize.COMMENT
    )


def of_markdown_at(line: int, text: str) -> Iterator[Paragraph]:
    return (Paragraph(line + each.line - 1, each.words) for each in of_markdown(text))


def _texts_of(call: ast.Call) -> Iterator[Paragraph]:
    name = call.func
    is_log = isinstance(name, ast.Attribute) and name.attr in LOG_METHODS
    is_class = isinstance(name, ast.Name) and name.id[0].isupper()
    help_texts = [each.value for each in call.keywords if each.arg in HELP_TEXTS]
    for node in [*help_texts, *(call.args if is_log or is_class else [])]:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from of_markdown_at(node.lineno, node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [str(p.value) if isinstance(p, ast.Constant) else "X" for p in node.values]
            yield _paragraph([(node.lineno, "".join(parts))])


def of_comments(mark: str) -> Callable[[str], Iterator[Paragraph]]:
    """Reads comments that have a line of their own."""
    comment = re.compile(rf"\s*(?:{mark})[!/]? ?(.*)")

    def read(text: str) -> Iterator[Paragraph]:
        numbered = enumerate(text.splitlines(), 1)
        return _blocks((n, found[1]) for n, line in numbered if (found := comment.match(line)))

    return read


def _blocks(comments: Iterable[tuple[int, str]]) -> Iterator[Paragraph]:
    """Joins comments on consecutive lines into paragraphs."""
    block: list[tuple[int, str]] = []
    for number, line in comments:
        if block and (number != block[-1][0] + 1 or not line.strip() or ITEM.match(line)):
            yield _paragraph(block)
            block = []
        block.append((number, line))
    if block:
        yield _paragraph(block)


def _paragraph(block: list[tuple[int, str]]) -> Paragraph:
    words = " ".join(ITEM.sub("", line, count=1).strip() for _, line in block)
    return Paragraph(block[0][0], words.strip())


_HASH, _SLASHES = of_comments("#"), of_comments("//|/\\*|\\*")
READERS: dict[str, Callable[[str], Iterable[Paragraph]]] = {
    ".md": of_markdown,
    ".py": of_python,
    ".proto": _SLASHES,
    ".js": _SLASHES,
    ".mjs": _SLASHES,
    ".css": _SLASHES,
    ".yaml": _HASH,
    ".toml": _HASH,
    "Makefile": of_comments("#|[a-z-]+:.*##"),
    "Dockerfile": _HASH,
    ".Dockerfile": _HASH,
}


if __name__ == "__main__":
    main()
