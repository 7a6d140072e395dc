"""The vLLM plug-in."""

import pytest

from pixtral_decoder.vllm_hooks import plugin


def test_vllm_finds_the_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert plugin.is_installed()
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    assert not plugin.is_installed()
