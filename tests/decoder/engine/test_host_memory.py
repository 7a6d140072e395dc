"""Keys and values in the machine's memory: what vLLM is given."""

import warnings
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pixtral_decoder.engine import engine_args
from pixtral_decoder.engine.engine_args import GIB, BadEngineArguments, EngineOptions, check_owned
from pixtral_decoder.process import _engine_options
from pixtral_decoder.settings import DecoderSettings

Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 GiB of it free."""
    usage = Usage(64 * GIB, 0, 64 * GIB)
    monkeypatch.setattr(engine_args, "shutil", SimpleNamespace(disk_usage=lambda _: usage))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        # vLLM's own, at import.
        warnings.simplefilter("ignore")
        import vllm.engine.arg_utils
        import vllm.platforms
    platform = SimpleNamespace(is_cpu=lambda: False)
    monkeypatch.setattr(vllm.platforms, "current_platform", platform)


def given(checkpoint: Path, **settings: Any) -> Any:
    options = _engine_options(DecoderSettings(model_dir=checkpoint, **settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return engine_args.engine_args(options)


@pytest.mark.usefixtures("gpu", "shared_memory")
def test_vllm_offloads_to_so_much_on_a_gpu(checkpoint: Path) -> None:
    arguments = given(checkpoint, kv_host_bytes=48 * GIB)
    assert arguments.kv_offloading_size == 48
    assert arguments.kv_offloading_backend == "native"


@pytest.mark.usefixtures("gpu", "shared_memory")
def test_vllm_offloads_nothing_unless_it_is_asked_for(checkpoint: Path) -> None:
    assert given(checkpoint).kv_offloading_size is None


@pytest.mark.usefixtures("shared_memory")
def test_a_cpu_starts_without_it(checkpoint: Path) -> None:
    assert given(checkpoint, kv_host_bytes=48 * GIB).kv_offloading_size is None


@pytest.mark.usefixtures("gpu", "shared_memory")
def test_more_than_the_shared_memory_is_refused_before_the_model_is_loaded(
    checkpoint: Path,
) -> None:
    with pytest.raises(BadEngineArguments, match=r"80\.0 GiB, and /dev/shm has 64\.0: make it"):
        given(checkpoint, kv_host_bytes=80 * GIB)


def test_vllm_s_own_name_for_it_names_the_setting() -> None:
    with pytest.raises(BadEngineArguments, match="kv_offloading_size is set by kv_host_bytes"):
        check_owned(["kv_offloading_size"])


def test_options_have_none_by_default(checkpoint: Path) -> None:
    assert EngineOptions(checkpoint).kv_host_bytes == 0
