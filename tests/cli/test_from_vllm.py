"""docs/from-vllm.md names flags that vLLM has, and ours that there are."""

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from pixtral_cli import main
from tools.settings_page import TIERS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "from-vllm.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| vLLM")
]
# The classes whose fields `vllm serve` has as flags.
CLASSES = ("EngineArgs", "AsyncEngineArgs", "BaseFrontendArgs", "FrontendArgs")


def flags(text: str) -> set[str]:
    return set(re.findall(r"`(--[\w-]+)`", text))


def flags_of_vllm() -> Iterator[str]:
    """Read from vLLM's source: to import it takes half a minute."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    # A release moved the second one.
    for file in (package / "engine/arg_utils.py", *package.glob("entrypoints/*/cli_args.py")):
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name in CLASSES:
                for field in node.body:
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                        yield f"--{field.target.id.replace('_', '-')}"
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_flags_of_vllm_are_those_that_it_has() -> None:
    named = {flag for row in ROWS for flag in flags(row[0])}
    assert len(named) > 30
    assert named - set(flags_of_vllm()) - {"--config"} == set()


def test_flags_of_ours_are_those_of_up(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["up", "--help"])
    of_up = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    same = {flag for row in ROWS if "the same" in row[1] for flag in flags(row[0])}
    ours = {flag for row in ROWS for cell in row[1:] for flag in flags(cell)}
    assert same | ours <= of_up
    group = {"--host", "--port", "--max-model-len", "--gpu-memory-utilization", "--api-key"}
    assert group <= same


def test_settings_are_those_of_the_tier() -> None:
    named = [
        (tier, setting)
        for row in ROWS
        for tier, settings in re.findall(r"(decoder|gateway): ((?:`\w+`(?:, )?)+)", row[1])
        for setting in re.findall(r"`(\w+)`", settings)
    ]
    assert len(named) >= 9
    assert [each for each in named if each[1] not in TIERS[each[0]].model_fields] == []
