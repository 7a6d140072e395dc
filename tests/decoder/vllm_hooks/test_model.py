"""The decoder's model class; `test_engine.py` and `test_family.py` run it in whole engines."""

import ast
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from pixtral_decoder.vllm_hooks import model


def test_still_there() -> None:
    assert_still_there(model)


def test_still_needed_while_vllms_pixtral_takes_pixels_alone() -> None:
    """Once this fails, see whether vLLM's own class will do: `model` can go then."""
    spec = find_spec("vllm.model_executor.models.pixtral")
    assert spec is not None
    assert spec.origin is not None
    # It is read and not imported: that takes torchvision.
    tree = ast.parse(Path(spec.origin).read_text())
    asked = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("pop", "get")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "kwargs"
        and isinstance(node.args[0], ast.Constant)
    }
    assert asked == {"images"}


@pytest.mark.parametrize(
    ("vision", "tokens"),
    [
        (SimpleNamespace(max_image_size=1024, patch_size=16), 4096),
        (SimpleNamespace(max_image_size=1540, patch_size=14, spatial_merge_size=2), 3025),
        (SimpleNamespace(image_size=1024, patch_size=16), 4096),
    ],
)
def test_an_image_takes_at_most_a_square_of_the_largest_side(vision: Any, tokens: int) -> None:
    assert model.max_image_tokens(vision) == tokens


def test_the_adapter_widens_an_embedding() -> None:
    adapter = model.VisionLanguageAdapter(8, 16, bias=True)
    assert adapter(torch.zeros(3, 8)).shape == (3, 16)
