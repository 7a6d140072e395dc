"""The shape of a Pixtral vision tower, and the token grid of an image."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

# [IMG_BREAK] and [IMG_END] in Mistral's Tekken tokenizers. A `params.json` always names [IMG]. It
# names these two only for Pixtral-Large and later models.
ROW_ENDS = (12, 13)


class BadCheckpoint(ValueError):
    """A model directory that cannot be served; the message says what to correct."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Image tokens, after the patch merger, in rows and columns."""

    rows: int
    cols: int

    @property
    def tokens(self) -> int:
        return self.rows * self.cols

    @property
    def placeholder_length(self) -> int:
        """Prompt tokens of the image, with one more token at the end of each row."""
        return self.rows * (self.cols + 1)


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """The vision tower, as `params.json` describes it; `width` is the hidden size, at the cut."""

    width: int
    layers: int
    heads: int
    intermediate_size: int
    rope_theta: float
    channels: int
    patch_size: int
    merge_size: int
    max_image_size: int
    has_merger: bool
    has_pre_projector_norm: bool
    adapter_bias: bool
    image_token_id: int
    image_break_token_id: int
    image_end_token_id: int

    # No params.json has this number. The code of the tower's norms fixes it (mistral-inference,
    # vision_encoder.py), whatever the language model's number is.
    norm_eps: ClassVar[float] = 1e-5

    @classmethod
    def from_params(
        cls, params: Mapping[str, Any], *, row_ends: tuple[int, int] = ROW_ENDS
    ) -> "VisionSpec":
        """`row_ends` are the ids of [IMG_BREAK] and [IMG_END] if `params` names none.

        Raises BadCheckpoint if the model has no vision tower or its numbers are wrong.
        """
        vision = params.get("vision_encoder")
        if not isinstance(vision, Mapping):
            raise BadCheckpoint("params.json has no vision_encoder: not a Pixtral model")
        try:
            spec = cls(
                width=int(vision["hidden_size"]),
                layers=int(vision["num_hidden_layers"]),
                heads=int(vision["num_attention_heads"]),
                intermediate_size=int(vision["intermediate_size"]),
                rope_theta=float(vision["rope_theta"]),
                channels=int(vision.get("num_channels", 3)),
                patch_size=int(vision["patch_size"]),
                merge_size=int(vision.get("spatial_merge_size", 1)),
                max_image_size=int(vision.get("max_image_size") or vision["image_size"]),
                has_merger=vision.get("mm_projector_id") == "patch_merge",
                has_pre_projector_norm=bool(vision.get("add_pre_mm_projector_layer_norm", False)),
                adapter_bias=bool(vision.get("adapter_bias", True)),
                image_token_id=int(vision["image_token_id"]),
                image_break_token_id=int(vision.get("image_break_token_id", row_ends[0])),
                image_end_token_id=int(vision.get("image_end_token_id", row_ends[1])),
            )
        except KeyError as missing:
            raise BadCheckpoint(
                f"params.json: vision_encoder.{missing.args[0]} is missing"
            ) from None
        except (TypeError, ValueError):
            raise BadCheckpoint("params.json: vision_encoder has a value of a wrong type") from None
        if min(spec.width, spec.layers, spec.heads, spec.patch_size, spec.merge_size) < 1:
            raise BadCheckpoint("params.json: vision_encoder has a size below 1")
        if spec.max_image_size < spec.patch_size * spec.merge_size:
            raise BadCheckpoint("params.json: vision_encoder's image size is below one token")
        if spec.width % (4 * spec.heads):
            raise BadCheckpoint("params.json: vision_encoder's head size is not a multiple of 4")
        return spec

    @property
    def token_size(self) -> int:
        """The pixels along one side of an image token."""
        return self.patch_size * self.merge_size

    def grid(self, width_px: int, height_px: int, *, low_detail: bool = False) -> Grid:
        """The grid of an image of that size, shrunk to `max_image_size` if it is larger.

        It agrees with mistral_common's `ImageEncoder` (`tokens/tokenizers/image.py`). In low detail
        the limit is half of `max_image_size`, and a large image has a quarter of the tokens.
        """
        longest = self.max_image_size
        if low_detail:
            longest = max(longest // 2, self.token_size)
        ratio = max(width_px / longest, height_px / longest)
        if ratio > 1:
            width_px = max(round(width_px / ratio), 1)
            height_px = max(round(height_px / ratio), 1)
        return Grid(
            rows=(height_px - 1) // self.token_size + 1, cols=(width_px - 1) // self.token_size + 1
        )

    def resized(self, grid: Grid) -> tuple[int, int]:
        """(width, height) in pixels of an image of that grid after resizing."""
        return grid.cols * self.token_size, grid.rows * self.token_size

    def placeholder(self, grid: Grid) -> list[int]:
        """The token ids of an image in a prompt."""
        row = [self.image_token_id] * grid.cols + [self.image_break_token_id]
        ids = row * grid.rows
        ids[-1] = self.image_end_token_id
        return ids


def read_params(model_dir: Path) -> dict[str, Any]:
    """`params.json` of a model in Mistral format. Raises BadCheckpoint."""
    path = model_dir / "params.json"
    try:
        params = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadCheckpoint(
            f"{path} is missing, and there is no config.json of Hugging Face's format either: "
            "not a model's directory"
        ) from None
    except ValueError:
        raise BadCheckpoint(f"{path} is not JSON") from None
    if not isinstance(params, dict):
        raise BadCheckpoint(f"{path} is not a JSON object")
    return params
