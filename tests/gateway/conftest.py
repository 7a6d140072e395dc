from collections.abc import Iterator
from pathlib import Path

import pytest

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from pixtral_gateway import stream_buffer
from tests.support.gateway_fixtures import (  # noqa: F401
    client,
    decoders,
    encoders,
    gateway,
    max_concurrent_requests,
    model_dir,
    more_settings,
    prompts,
    redis,
    redis_server,
    spec,
)
from tests.support.tekken_version import set_version
from tests.support.tokenizers import read_once


@pytest.fixture(scope="session", autouse=True)
def tokenizers_are_read_once() -> Iterator[None]:
    with read_once():
        yield


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader is not slow because the machine is."""
    monkeypatch.setattr(stream_buffer, "SLOW_SECONDS", 600.0)


@pytest.fixture(scope="session")
def merging_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches merged two by two, and a template with system messages of their own."""
    small = RandomSpec(
        dim=8,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        vision_layers=1,
        patch_size=14,
        spatial_merge_size=2,
        max_image_size=1540,
    )
    directory = write_random_checkpoint(tmp_path_factory.mktemp("models") / "merging", small)
    set_version(directory, "v7")
    return directory


@pytest.fixture(scope="session")
def sentencepiece_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Pixtral-Large's: SentencePiece, in version 7."""
    small = RandomSpec(
        dim=8, n_layers=1, n_heads=1, n_kv_heads=1, vision_layers=1, tokenizer="sentencepiece"
    )
    return write_random_checkpoint(tmp_path_factory.mktemp("models") / "sentencepiece", small)


@pytest.fixture(scope="session")
def v11_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that names a tool and then its arguments, between control tokens."""
    return of_version("v11", tmp_path_factory)


@pytest.fixture(scope="session")
def v13_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As that of version 11, and calls have no ids."""
    return of_version("v13", tmp_path_factory)


@pytest.fixture(scope="session")
def thinking_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Magistral's: version 13, with tokens to think between."""
    return of_version("v13", tmp_path_factory, thinks=True)


@pytest.fixture(scope="session")
def v15_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thinks as much as a setting in the prompt says."""
    return of_version("v15", tmp_path_factory)


def of_version(
    version: str, tmp_path_factory: pytest.TempPathFactory, *, thinks: bool = False
) -> Path:
    small = RandomSpec(dim=8, n_layers=1, n_heads=1, n_kv_heads=1, vision_layers=1)
    directory = tmp_path_factory.mktemp("models") / f"{version}{'-thinking' if thinks else ''}"
    set_version(write_random_checkpoint(directory, small), version, thinks=thinks)
    return directory
