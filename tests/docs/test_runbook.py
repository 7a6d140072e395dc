"""The runbook's commands: queries read metrics that exist, and commands name what is there."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from tools.expressions import rules, runbook

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs/runbook.md").read_text("utf-8")
SECTIONS = dict(
    re.findall(r"^### (Pixtral\w+)\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
)
BLOCK = re.compile(r"```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)
COMMANDS = [
    line
    for found in BLOCK.finditer(RUNBOOK)
    if found["language"] == "sh"
    for line in found["code"].splitlines()
]
# Series that a histogram has beside its name.
SUFFIX = re.compile(r"_(?:bucket|count|sum)$")


@pytest.mark.parametrize("alert", SECTIONS)
def test_a_section_ends_with_a_look_a_remedy_and_a_proof(alert: str) -> None:
    assert [found["language"] for found in BLOCK.finditer(SECTIONS[alert])] == [
        "promql",
        "sh",
        "promql",
    ]


def test_every_query_reads_metrics_that_exist() -> None:
    documented = set(
        re.findall(r"^\| `([a-z_:]+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    )
    recorded = {rule.record for rule in rules() if rule.record}
    read = {SUFFIX.sub("", name) for query in runbook() for name in query.metrics()}

    assert read - documented - recorded == {"up"}


@cache
def objects() -> frozenset[tuple[str, str]]:
    """The kind and name of each object of the manifests."""
    return frozenset(
        (document["kind"].lower(), document["metadata"]["name"])
        for path in (ROOT / "deploy/k8s").rglob("*.yaml")
        for document in yaml.safe_load_all(path.read_text("utf-8"))
        if document and "metadata" in document
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_objects_of_the_manifests(command: str) -> None:
    named = re.findall(r"\b(deployment)/(\w+)|\b(scaledobject) (\w+)", command)

    assert {(a or c, b or d) for a, b, c, d in named} <= objects()
    assert command.startswith("kubectl ")
    assert "--namespace pixtral" in command or command == "kubectl cordon NODE"
    for patch in re.findall(r"--patch '([^']+)'", command):
        json.loads(patch)
