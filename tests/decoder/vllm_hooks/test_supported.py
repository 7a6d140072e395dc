"""Which vLLM will do, and who reaches into it."""

import ast
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import pixtral_decoder
from pixtral_core.hooks import HookBroken, header
from pixtral_decoder.vllm_hooks import supported

PACKAGE = Path(pixtral_decoder.__file__).parent
# The modules that vLLM offers to others; the rest is for hooks.
PUBLIC = {
    "vllm",
    "vllm.config",
    "vllm.engine.arg_utils",
    "vllm.inputs",
    "vllm.lora.request",
    "vllm.multimodal.inputs",
    "vllm.outputs",
    "vllm.platforms",
    "vllm.sampling_params",
    "vllm.usage.usage_lib",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.exceptions",
}


def test_every_hook_is_checked() -> None:
    files = [path for path in (PACKAGE / "vllm_hooks").glob("*.py") if path.stem != "__init__"]
    docstrings = {path.stem: ast.get_docstring(ast.parse(path.read_text())) for path in files}
    hooks = {name for name, docstring in docstrings.items() if header(docstring)}
    assert hooks == set(supported.HOOKS)
    assert set(docstrings) - hooks == {"plugin", "supported"}


def test_nothing_but_hooks_reaches_into_vllm() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "vllm_hooks":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            inside = {name for name in names if name.split(".")[0] == "vllm"} - PUBLIC
            assert not inside, f"{path} imports {inside}: that is for a hook"


def test_an_untried_version_is_warned_of_and_not_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supported, "_hooks_here", lambda: ())
    for version in supported.TRIED:
        monkeypatch.setattr(supported, "installed", lambda version=version: version)
        supported.check()
    assert not caplog.records
    monkeypatch.setattr(supported, "installed", lambda: "0.34.0")
    with caplog.at_level(logging.WARNING):
        supported.check()
    assert caplog.messages == [
        "vLLM 0.34.0 was not tried with this decoder: 0.25.1, 0.32.0, 0.33.0 were"
    ]


def test_a_hook_that_finds_nothing_of_vllms_to_stand_on_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"{supported.__package__}.scheduler"
    monkeypatch.delitem(sys.modules, name, raising=False)
    # A module without any of the names that the hook imports.
    emptied = ModuleType("vllm.v1.core.sched.scheduler")
    monkeypatch.setitem(sys.modules, emptied.__name__, emptied)
    with pytest.raises(HookBroken, match=rf"the hook {name} does not load with this vLLM \(.*: "):
        supported.check_hook("scheduler")


def test_what_doctor_reads() -> None:
    done = subprocess.run(
        [sys.executable, "-m", supported.__name__], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"version": supported.installed(), "warning": None, "broken": []}
