"""Every PromQL expression of the project, and the metrics that it reads."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools import safe_yaml

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yaml"
RUNBOOK = DEPLOY.parent / "docs" / "runbook.md"

_WORDS = frozenset({"and", "or", "unless", "bool", "offset"})
_SPENT = (
    r'"[^"]*"',
    r"\{[^}]*\}",
    r"\[[^\]]*\]",
    r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)",
)


@dataclass(frozen=True, slots=True)
class Expression:
    """`name` says where the expression is; `record` is the metric that a recording rule makes."""

    name: str
    text: str
    record: str | None = None
    is_alert: bool = False

    def metrics(self) -> frozenset[str]:
        """Names of the metrics and recorded series that the expression reads."""
        text = self.text
        for pattern in _SPENT:
            text = re.sub(pattern, " ", text)
        # A name before a parenthesis is a function.
        names = re.findall(r"(?<![\w.:])[a-zA-Z_:][\w:]*\b(?!\s*\()", text)
        return frozenset(names) - _WORDS


def rules() -> Iterator[Expression]:
    for group in safe_yaml.load(RULES.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            record = rule.get("record")
            name = record or rule["alert"]
            yield Expression(name, rule["expr"], record, is_alert=record is None)


def runbook() -> Iterator[Expression]:
    """The queries of the runbook; each has the name of its section."""
    text = RUNBOOK.read_text(encoding="utf-8")
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        for query in re.findall(r"^```promql\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
            yield Expression(section.split("\n", 1)[0], query.strip())


def panels() -> Iterator[Expression]:
    """The expressions of the dashboards' JSON, with variables such as `$namespace` unchanged."""
    for path in sorted((DEPLOY / "grafana").glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                yield Expression(f"{path.stem}: {panel['title']}", target["expr"])
