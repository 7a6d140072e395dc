import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from pixtral_core.cache.wire_format import DType
from pixtral_core.model.fingerprint import fingerprint
from pixtral_core.model.vision_spec import BadCheckpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), RandomSpec(dim=32))


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def rewrite(directory: Path, name: str, change: float) -> None:
    path = directory / "consolidated.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name] + change
    save_file(tensors, path)


def test_equal_models_have_equal_fingerprints(checkpoint: Path, copy: Path) -> None:
    assert fingerprint(checkpoint, DType.BF16) == fingerprint(copy, DType.BF16)


def test_shards_do_not_matter(checkpoint: Path, copy: Path) -> None:
    path = copy / "consolidated.safetensors"
    tensors = load_file(path)
    names = sorted(tensors)
    half = len(names) // 2
    for number, part in enumerate((names[:half], names[half:]), start=1):
        save_file(
            {name: tensors[name] for name in part},
            copy / f"consolidated-{number:05}-of-00002.safetensors",
        )
    path.unlink()
    assert fingerprint(checkpoint, DType.BF16) == fingerprint(copy, DType.BF16)


def test_each_thing_that_moves_an_embedding_moves_it(checkpoint: Path, copy: Path) -> None:
    seen = {fingerprint(checkpoint, DType.BF16), fingerprint(checkpoint, DType.F32)}
    seen.add(fingerprint(checkpoint, DType.BF16, fp8=True))
    rewrite(copy, "vision_encoder.ln_pre.weight", 1e-3)
    seen.add(fingerprint(copy, DType.BF16))
    params = json.loads((copy / "params.json").read_text())
    params["vision_encoder"]["rope_theta"] = 5000.0
    (copy / "params.json").write_text(json.dumps(params))
    seen.add(fingerprint(copy, DType.BF16))
    assert len(seen) == 5


def test_the_language_model_does_not_matter(checkpoint: Path, copy: Path) -> None:
    rewrite(copy, "norm.weight", 1.0)
    assert fingerprint(checkpoint, DType.BF16) == fingerprint(copy, DType.BF16)


def test_a_broken_checkpoint_is_named(copy: Path) -> None:
    weights = copy / "consolidated.safetensors"
    data = weights.read_bytes()
    for broken in (b"", b"\xff" * 64, data[:100], b"\x04" + b"\0" * 7 + b"????"):
        weights.write_bytes(broken)
        with pytest.raises(BadCheckpoint, match="safetensors"):
            fingerprint(copy, DType.BF16)
    save_file({"norm.weight": torch.ones(1)}, weights)
    with pytest.raises(BadCheckpoint, match="no vision weights"):
        fingerprint(copy, DType.BF16)
    weights.unlink()
    with pytest.raises(BadCheckpoint, match="no consolidated"):
        fingerprint(copy, DType.BF16)
