"""Code in the README and the docs is code: each block parses, and names commands that exist."""

import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
COMMAND = re.compile(r"pixtral-serve (?P<name>[a-z]+)(?P<arguments>(?:\\\n|[^\n|;&)#])*)")
TIERS = {"gateway", "encoder", "decoder"}


def blocks(*languages: str) -> list[object]:
    return [
        pytest.param(
            re.sub(f"^{found['indent']}", "", found["code"], flags=re.MULTILINE),
            id=f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}",
        )
        for page in PAGES
        for text in [page.read_text("utf-8")]
        for found in BLOCK.finditer(text)
        if found["language"] in languages
    ]


@pytest.mark.parametrize("code", blocks("sh", "bash"))
def test_commands_are_of_the_shells_syntax(code: str) -> None:
    checked = subprocess.run(
        ["bash", "-n"], input=code, capture_output=True, text=True, check=False, timeout=30
    )

    assert checked.stderr == ""


@pytest.mark.parametrize("code", blocks("json"))
def test_json_parses(code: str) -> None:
    json.loads(code)


@pytest.mark.parametrize("code", blocks("toml"))
def test_toml_parses(code: str) -> None:
    tomllib.loads(code)


@pytest.mark.parametrize("code", blocks("yaml"))
def test_yaml_parses(code: str) -> None:
    assert all(yaml.safe_load_all(code))


@pytest.mark.parametrize("code", blocks("sh", "bash"))
def test_flags_of_our_commands_exist(code: str) -> None:
    for command in COMMAND.finditer(code):
        known = flags_of(command["name"])
        # Between quotes are a question, or flags for another command.
        arguments = re.sub(r"\"[^\"]*\"|'[^']*'", "", command["arguments"])
        used = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", arguments))
        assert used <= known, command[0]


@cache
def flags_of(command: str) -> frozenset[str]:
    """The flags of a command; those of a tier are its settings."""
    if command in TIERS:
        settings = (ROOT / "docs/settings.md").read_text("utf-8")
        names = re.findall(r"^\| `PIXTRAL_(\w+)`", settings, re.MULTILINE)
        return frozenset({f"--{name.lower().replace('_', '-')}" for name in names} | {"--help"})
    shown = subprocess.run(
        [sys.executable, "-m", "pixtral_cli.main", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return frozenset(re.findall(r"--[a-z][a-z-]*", shown.stdout))
