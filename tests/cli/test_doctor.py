"""The report of doctor about an installation's vLLM."""

import importlib.metadata
import importlib.util
import shutil
from types import SimpleNamespace
from typing import Any

import pytest

from pixtral_cli import doctor
from pixtral_cli.checkpoint_report import GIB, Finding

BROKEN = "vLLM has no vllm.v1.engine.core.EngineCoreProc, which the hook x needs: install one of y"


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The report about a vLLM with these results of the probe."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ["pixtral"])

    def of(version: str, warning: str | None = None, broken: list[str] | None = None) -> Any:
        found = {"version": version, "warning": warning, "broken": broken or []}
        monkeypatch.setattr(doctor, "_probe", lambda _: (found, ""))
        return list(doctor.check_vllm())

    return of


@pytest.mark.parametrize(
    ("hosts", "http", "told"),
    [
        ("", "", "fetches none"),
        ("images.example.org", "", "by https from images.example.org"),
        ("*", "true", "by https and http from *"),
    ],
)
def test_where_images_are_fetched_from(
    hosts: str, http: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXTRAL_IMAGE_URL_HOSTS", hosts)
    monkeypatch.setenv("PIXTRAL_IMAGE_URL_HTTP", http)
    (finding,) = doctor.check_image_urls()
    assert finding.level == "ok"
    assert told in finding.what
    assert ("--image-urls" in (finding.advice or "")) == (not hosts)


def test_a_version_that_was_tried_is_fine(findings: Any) -> None:
    assert findings("0.32.0") == [Finding("ok", "vllm 0.32.0 imports, and finds the plug-in")]


def test_a_version_that_was_not_tried_is_warned_of(findings: Any) -> None:
    levels = [finding.level for finding in findings("0.34.0", warning="vLLM 0.34.0 was not tried")]
    assert levels == ["warn", "ok"]


def test_a_hook_without_what_it_needs_is_a_failure(findings: Any) -> None:
    broken = findings("0.34.0", broken=[BROKEN])[0]
    assert (broken.level, broken.what) == ("fail", BROKEN)


@pytest.mark.parametrize(
    ("available", "shared", "bytes_", "has_to_grow"),
    [(200, 128, 100, False), (200, 64, 100, True), (12, 64, None, False)],
)
def test_half_of_the_free_memory_can_hold_keys_and_values(
    monkeypatch: pytest.MonkeyPatch,
    available: int,
    shared: int,
    bytes_: int | None,
    has_to_grow: bool,
) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: available * GIB)
    usage = SimpleNamespace(free=shared * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    found = list(doctor.check_host_memory())
    if bytes_ is None:
        assert found == []
        return
    (finding,) = found
    assert finding.level == "ok"
    assert f"PIXTRAL_KV_HOST_BYTES={bytes_ * GIB}" in finding.advice
    assert ("--shm-size" in finding.advice) is has_to_grow
