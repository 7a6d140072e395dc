"""Renders the chart of deploy/helm without Helm, by the part of Go's templates that it uses.

No package registry has Helm. So the chart is rendered here, checked by the overlays' rules and
schemas, and compared with the overlays. Any other template feature is an error.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tools import safe_yaml
from tools.deploy.manifests import ROOT
from tools.deploy.objects import Object

CHART = ROOT / "deploy" / "helm" / "pixtral-serve"
_ACTION = re.compile(r"\{\{(-)?\s*(/\*.*?\*/|.*?)\s*(-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?)"""
    r"""|(?P<field>\$?[A-Za-z_]\w*(?:\.\w+)*|\$?\.\w+(?:\.\w+)*|\$|\.)|(?P<mark>:=|[|(),=]))"""
)


class ChartError(Exception):
    """The chart refuses its values, or uses a template feature that this renderer lacks."""


@dataclass(slots=True)
class Block:
    """An action with its branches: the parts inside of it, and those after its `else`."""

    head: str
    body: "list[str | Block]" = field(default_factory=list)
    otherwise: "list[str | Block]" = field(default_factory=list)


def render(values: Mapping[str, Any], *, release: str, namespace: str) -> list[Object]:
    """All objects of the chart, with `values` over the chart's own. Raises ChartError."""
    merged = merge(safe_yaml.load((CHART / "values.yaml").read_text("utf-8")), values)
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    for error in jsonschema.Draft7Validator(schema).iter_errors(merged):
        raise ChartError(f"{error.json_path}: {error.message}")
    root = {
        "Values": merged,
        "Release": {"Name": release, "Namespace": namespace, "Service": "Helm"},
        "Chart": _capitals(safe_yaml.load((CHART / "Chart.yaml").read_text("utf-8"))),
        "Files": Files(CHART),
    }
    templates = Templates()
    files = sorted((CHART / "templates").glob("*"))
    trees = {path.name: templates.read(path.read_text("utf-8")) for path in files}
    objects: list[Object] = []
    for name, tree in trees.items():
        if name.endswith(".yaml"):
            text = templates.run(tree, root, {"$": root})
            objects += [each for each in safe_yaml.load_all(text) if each]
    for each in objects:
        each["metadata"].setdefault("namespace", namespace)
    return objects


def merge(below: Any, above: Any) -> Any:
    """Merges values as Helm does: maps are joined, other values replaced."""
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        joined = {**below, **{k: merge(below.get(k), v) for k, v in above.items()}}
        return {key: value for key, value in joined.items() if value is not None}
    return above


def _capitals(chart: Mapping[str, Any]) -> dict[str, Any]:
    return {key[0].upper() + key[1:]: value for key, value in chart.items()}


@dataclass(frozen=True, slots=True)
class Files:
    chart: Path

    def get(self, name: str) -> str:
        return (self.chart / name).read_text("utf-8")


class Templates:
    """Reads and runs templates; collects the chart's named ones."""

    def __init__(self) -> None:
        self._named: dict[str, list[str | Block]] = {}
        self._functions: dict[str, Callable[..., Any]] = {
            **FUNCTIONS,
            "include": lambda name, dot: self.run(self._named[name], dot, {"$": dot}),
        }

    def read(self, text: str) -> "list[str | Block]":
        """The tree of a template's text. Named templates are stored."""
        parts = list(_parts(text))
        tree = self._read(parts, [])
        if parts:
            raise ChartError(f"{parts[0]} closes a block that is not open")
        return tree

    def _read(self, parts: "list[tuple[bool, str]]", ends: list[str]) -> "list[str | Block]":
        tree: list[str | Block] = []
        while parts:
            is_action, text = parts[0]
            word = text.split(" ", 1)[0] if is_action else ""
            if word in ("end", "else"):
                break
            parts.pop(0)
            if not is_action:
                tree.append(text)
            elif word in ("if", "with", "range", "define"):
                tree += self._block(Block(text), parts, word)
            else:
                tree.append(Block(text))
        return tree

    def _block(self, block: Block, parts: "list[tuple[bool, str]]", word: str) -> list[Block]:
        block.body = self._read(parts, ["end", "else"])
        _, text = parts.pop(0)
        if text.startswith("else if"):
            block.otherwise = list(self._block(Block(text[5:]), parts, "if"))
        elif text == "else":
            block.otherwise = self._read(parts, ["end"])
            parts.pop(0)
        if word == "define":
            self._named[json.loads(block.head.split(" ", 1)[1])] = block.body
            return []
        return [block]

    def run(self, tree: "Sequence[str | Block]", dot: Any, names: dict[str, Any]) -> str:
        """The text of a tree with this `dot` and these variables."""
        names = dict(names)
        return "".join(
            each if isinstance(each, str) else self._act(each, dot, names) for each in tree
        )

    def _act(self, block: Block, dot: Any, names: dict[str, Any]) -> str:
        word, _, rest = block.head.partition(" ")
        if word == "if":
            chosen = block.body if self._value(rest, dot, names) else block.otherwise
            return self.run(chosen, dot, names)
        if word == "with":
            found = self._value(rest, dot, names)
            return self.run(*((block.body, found) if found else (block.otherwise, dot)), names)
        if word == "range":
            return self._range(block, rest, dot, names)
        if assigned := re.match(r"(\$\w+) (:?=) (.*)", block.head, re.DOTALL):
            names[assigned[1]] = self._value(assigned[3], dot, names)
            return ""
        value = self._value(block.head, dot, names)
        return "" if value is None else _text(value)

    def _range(self, block: Block, rest: str, dot: Any, names: dict[str, Any]) -> str:
        bound = re.match(r"(?:(\$\w+), )?(\$\w+) := (.*)", rest, re.DOTALL)
        over = self._value(bound[3] if bound else rest, dot, names)
        pairs = sorted(over.items()) if isinstance(over, Mapping) else list(enumerate(over or ()))
        made = []
        for key, value in pairs:
            own = dict(names)
            if bound:
                own |= {bound[2]: value} | ({bound[1]: key} if bound[1] else {})
            made.append(self.run(block.body, value, own))
        return "".join(made) or self.run(block.otherwise, dot, names)

    def _value(self, text: str, dot: Any, names: dict[str, Any]) -> Any:
        tokens = list(_tokens(text))
        value = self._pipeline(tokens, dot, names)
        if tokens:
            raise ChartError(f"not understood: {text}")
        return value

    def _pipeline(self, tokens: list[tuple[str, str]], dot: Any, names: dict[str, Any]) -> Any:
        value, is_first = None, True
        while True:
            value = self._command(tokens, dot, names, () if is_first else (value,))
            is_first = False
            if not tokens or tokens[0] != ("mark", "|"):
                return value
            tokens.pop(0)

    def _command(
        self, tokens: list[tuple[str, str]], dot: Any, names: dict[str, Any], last: tuple[Any, ...]
    ) -> Any:
        kind, text = tokens[0]
        if kind == "field" and text in self._functions:
            tokens.pop(0)
            arguments = self._operands(tokens, dot, names)
            return self._functions[text](*arguments, *last)
        operands = self._operands(tokens, dot, names)
        if len(operands) == 2 and callable(operands[0]):
            return operands[0](operands[1])
        if len(operands) != 1 or last:
            raise ChartError(f"not a call: {text}")
        return operands[0]

    def _operands(
        self, tokens: list[tuple[str, str]], dot: Any, names: dict[str, Any]
    ) -> list[Any]:
        found = []
        while tokens and tokens[0] not in (("mark", "|"), ("mark", ")")):
            kind, text = tokens.pop(0)
            if kind == "mark" and text == "(":
                found.append(self._pipeline(tokens, dot, names))
                tokens.pop(0)
            elif kind == "string":
                found.append(text[1:-1] if text[0] == "`" else json.loads(text))
            elif kind == "number":
                found.append(float(text) if "." in text else int(text))
            elif text in ("true", "false"):
                found.append(text == "true")
            else:
                found.append(_field(text, dot, names))
        return found


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """Text and actions in turn, without the white space that actions trim."""
    at, trims = 0, False
    for found in _ACTION.finditer(text):
        before = text[at : found.start()]
        before = before.lstrip() if trims else before
        yield False, before.rstrip() if found[1] else before
        if not found[2].startswith("/*"):
            yield True, re.sub(r"\s+", " ", found[2]) if '"' not in found[2] else found[2]
        at, trims = found.end(), bool(found[3])
    yield False, text[at:].lstrip() if trims else text[at:]


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text.rstrip()):
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise ChartError(f"not understood: {text[at:]}")
        yield found.lastgroup, found[found.lastgroup]
        at = found.end()


def _field(text: str, dot: Any, names: dict[str, Any]) -> Any:
    head, *path = text.split(".")
    if head == "":
        value = dot
    elif head in names:
        value = names[head]
    else:
        raise ChartError(f"there is no function or variable {head}")
    for name in filter(None, path):
        if isinstance(value, Files) and name == "Get":
            return value.get
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _indented(count: int, text: str) -> str:
    return "\n".join(" " * count + line for line in text.split("\n"))


def _fail(message: str) -> Any:
    raise ChartError(message)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=False, width=10_000).rstrip()


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": lambda *values: next((v for v in values if not v), values[-1]),
    "default": lambda fallback, value=None: value or fallback,
    "dict": lambda *pairs: dict(zip(pairs[::2], pairs[1::2], strict=True)),
    "eq": lambda a, *b: a in b,
    "fail": _fail,
    "gt": lambda a, b: a > b,
    "has": lambda value, values: value in values,
    "indent": _indented,
    "index": lambda value, *path: _at(value, path),
    "int": int,
    "list": lambda *values: list(values),
    "merge": lambda *maps: {k: v for each in reversed(maps) for k, v in each.items()},
    "ne": lambda a, b: a != b,
    "nindent": lambda count, text: "\n" + _indented(count, text),
    "not": lambda value: not value,
    "or": lambda *values: next((v for v in values if v), values[-1]),
    "printf": lambda form, *values: form.replace("%d", "%s") % values,
    "quote": lambda value: json.dumps(_text(value)),
    "required": lambda message, value=None: value or _fail(message),
    "replace": lambda old, new, text: text.replace(old, new),
    "sha256sum": lambda text: sha256(text.encode()).hexdigest(),
    "ternary": lambda yes, no, chosen: yes if chosen else no,
    "toString": _text,
    "toYaml": _yaml,
    "trunc": lambda count, text: text[:count],
}


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else value[name]
    return value
