import re
from pathlib import Path
from typing import Any

from tools import safe_yaml
from tools.expressions import RULES

ROOT = Path(__file__).resolve().parent.parent.parent


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = safe_yaml.load(path.read_text(encoding="utf-8"))
    return document


def alerts() -> dict[str, dict[str, Any]]:
    groups = load(RULES)["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def test_every_alert_is_shown_to_fire_and_to_be_silent() -> None:
    cases = [
        (case["alertname"], bool(case["exp_alerts"]))
        for test in load(RULES.with_name("rules_test.yaml"))["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {name for name, fires in cases if fires} == set(alerts())
    assert {name for name, fires in cases if not fires} == set(alerts())


def test_every_alert_has_its_section_in_the_runbook_and_no_section_is_left_over() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^### (Pixtral\w+)$", runbook, re.MULTILINE))
    assert sections == set(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["labels"]["service"] == "pixtral-serve"
