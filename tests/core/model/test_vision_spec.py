import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from PIL import Image

from pixtral_core.model.vision_spec import BadCheckpoint, Grid, VisionSpec, read_params

# As published with Pixtral-12B-2409.
PIXTRAL_12B: dict[str, Any] = {
    "norm_eps": 1e-5,
    "vision_encoder": {
        "hidden_size": 1024,
        "num_channels": 3,
        "max_image_size": 1024,
        "patch_size": 16,
        "rope_theta": 10000.0,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "adapter_bias": True,
        "image_token_id": 10,
    },
}


def spec(**changes: Any) -> VisionSpec:
    return VisionSpec.from_params({"vision_encoder": {**PIXTRAL_12B["vision_encoder"], **changes}})


class _Sized(Image.Image):
    """An image of which only the size is ever asked."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self._size = (width, height)


@given(
    st.integers(1, 9000),
    st.integers(1, 9000),
    st.sampled_from([(16, 1, 1024), (14, 2, 1540), (14, 1, 1024)]),
)
@example(1, 1, (16, 1, 1024))
@example(16, 1024, (16, 1, 1024))
@example(9000, 1, (14, 2, 1540))
@example(1025, 1024, (16, 1, 1024))
def test_the_grid_is_mistral_commons(width: int, height: int, sizes: tuple[int, int, int]) -> None:
    patch, merge, largest = sizes
    ours = spec(patch_size=patch, spatial_merge_size=merge, max_image_size=largest)
    theirs = ImageEncoder(ImageConfig(patch, largest, merge), SpecialImageIDs(10, 12, 13))
    cols, rows = theirs._image_to_num_tokens(_Sized(width, height))
    assert ours.grid(width, height) == Grid(rows, cols)


def test_placeholders_are_rows_that_end() -> None:
    grid = Grid(rows=2, cols=3)
    ids = spec().placeholder(grid)
    assert ids == [10, 10, 10, 12, 10, 10, 10, 13]
    assert len(ids) == grid.placeholder_length
    assert ids.count(10) == grid.tokens


def test_a_large_image_of_pixtral_12b() -> None:
    grid = spec().grid(4000, 3000)
    assert (grid.rows, grid.cols) == (48, 64)
    assert spec().resized(grid) == (1024, 768)


@pytest.mark.parametrize(
    ("width", "height", "rows", "cols"),
    [(4000, 3000, 24, 32), (513, 512, 32, 32), (512, 512, 32, 32), (100, 50, 4, 7)],
)
def test_low_detail_halves_the_largest_image(width: int, height: int, rows: int, cols: int) -> None:
    assert spec().grid(width, height, low_detail=True) == Grid(rows, cols)


def test_numbers_come_from_params_json() -> None:
    found = spec()
    assert (found.width, found.layers, found.heads, found.patch_size) == (1024, 24, 16, 16)
    assert (found.merge_size, found.has_merger, found.has_pre_projector_norm) == (1, False, False)
    merging = spec(
        patch_size=14,
        spatial_merge_size=2,
        mm_projector_id="patch_merge",
        add_pre_mm_projector_layer_norm=True,
        adapter_bias=False,
    )
    assert (merging.token_size, merging.has_merger, merging.adapter_bias) == (28, True, False)
    assert merging.has_pre_projector_norm


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, "not a Pixtral"),
        ({"vision_encoder": {"hidden_size": 8}}, "is missing"),
        ({"vision_encoder": {**PIXTRAL_12B["vision_encoder"], "patch_size": "x"}}, "wrong type"),
        ({"vision_encoder": {**PIXTRAL_12B["vision_encoder"], "patch_size": 0}}, "below 1"),
        ({"vision_encoder": {**PIXTRAL_12B["vision_encoder"], "max_image_size": 8}}, "one token"),
        ({"vision_encoder": {**PIXTRAL_12B["vision_encoder"], "hidden_size": 72}}, "head size"),
    ],
)
def test_a_wrong_params_json_says_what_is_wrong(params: dict[str, Any], says: str) -> None:
    with pytest.raises(BadCheckpoint, match=says):
        VisionSpec.from_params(params)


def test_a_missing_or_broken_params_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="missing"):
        read_params(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "params.json").write_text(text)
        with pytest.raises(BadCheckpoint, match="params"):
            read_params(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps(PIXTRAL_12B))
    assert read_params(tmp_path) == PIXTRAL_12B
