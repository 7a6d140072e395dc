import json
from pathlib import Path

import pytest

from deploy.grafana.dashboards import render
from tests.support.metrics_page import base_name, read_page
from tools.expressions import panels, rules

RENDERED = render()
# Prometheus' own, and those of NVIDIA's dcgm-exporter.
OF_OTHERS = {"up", "ALERTS", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED"}


@pytest.fixture(params=RENDERED, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_json_is_what_the_code_makes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == RENDERED[path], "run `make dashboards`"


def test_every_panel_says_what_it_shows_and_has_its_own_place(path: Path) -> None:
    board = json.loads(RENDERED[path])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"]
            assert panel["targets"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_panels_and_rules_read_only_what_is_described_or_recorded() -> None:
    page = read_page()
    recorded = {rule.record for rule in rules() if rule.record}
    known = {*page, *recorded, *OF_OTHERS}
    expressions = [*panels(), *rules()]
    assert len(expressions) > 100
    unknown = {
        (expression.name, name)
        for expression in expressions
        for name in expression.metrics()
        if base_name(name, page) not in known
    }
    assert not unknown


def test_every_metric_is_shown() -> None:
    page = read_page()
    shown = {base_name(name, page) for panel in panels() for name in panel.metrics()}
    recorded = {rule.record: rule.metrics() for rule in rules() if rule.record}
    of_rules = {base_name(each, page) for name in shown & {*recorded} for each in recorded[name]}
    assert {*page} - shown - of_rules == set()


def test_all_that_is_recorded_is_read() -> None:
    read = {name for expression in (*panels(), *rules()) for name in expression.metrics()}
    assert {rule.record for rule in rules() if rule.record} <= read


def test_numbers_with_an_objective_turn_red_at_it() -> None:
    board = json.loads(next(text for path, text in RENDERED.items() if path.stem == "fleet"))
    red = {
        panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
        for panel in board["panels"]
        if panel["title"] in {"Errors", "Late answers", "First token, p95"}
    }
    assert red == {"Errors": 0.005, "Late answers": 0.05, "First token, p95": 2.5}


def test_vllm_names_on_the_page_are_those_that_are_used() -> None:
    page = read_page()
    used = {
        base_name(name, page)
        for expression in (*panels(), *rules())
        for name in expression.metrics()
    }
    assert {name for name in page if name.startswith("vllm:")} == {
        name for name in used if name.startswith("vllm:")
    }
