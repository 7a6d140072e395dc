"""The README of each service names folders, settings, metrics and pages that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ("gateway", "services/encoder", "services/decoder", "core", "client", "cli")
# The client's own; docs/settings.md is about the tiers.
OF_THE_CLIENT = {"PIXTRAL_API_KEY"}


def read(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


@pytest.mark.parametrize("service", SERVICES)
def test_readme_names_each_folder_of_the_package(service: str) -> None:
    (package,) = (ROOT / service).glob("pixtral_*")
    folders = {path.parent.name for path in package.glob("*/__init__.py")}

    assert (
        set(re.findall(r"^\| `(\w+)/` \|", read(f"{service}/README.md"), re.MULTILINE)) == folders
    )


@pytest.mark.parametrize("service", SERVICES)
def test_modules_that_a_readme_names_exist(service: str) -> None:
    (package,) = (ROOT / service).glob("pixtral_*")
    named = re.findall(r"`(?:pixtral_\w+/)?(\w+\.py)`", read(f"{service}/README.md"))

    assert [name for name in named if not (package / name).is_file()] == []


@pytest.mark.parametrize("service", SERVICES)
def test_links_of_a_readme_lead_somewhere(service: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", read(f"{service}/README.md"))

    assert [link for link in links if not (ROOT / service / link).exists()] == []


@pytest.mark.parametrize("service", SERVICES)
def test_settings_and_metrics_of_a_readme_exist(service: str) -> None:
    text = read(f"{service}/README.md")
    settings = set(re.findall(r"`(PIXTRAL_[A-Z0-9_]*[A-Z0-9])`", text)) - OF_THE_CLIENT
    metrics = set(re.findall(r"`((?:pixtral_|grpc_server_|vllm:)\w+)`", text))
    packages = {path.name for folder in SERVICES for path in (ROOT / folder).glob("pixtral_*")}

    assert settings <= set(re.findall(r"`(PIXTRAL_\w+)`", read("docs/settings.md")))
    assert metrics - packages <= set(re.findall(r"`([\w:]+)`", read("docs/metrics.md")))
