"""Small random checkpoints in the shapes of the published models, in Mistral format."""

import json
from pathlib import Path

from models.random_checkpoint import RandomSpec, write_random_checkpoint

PIXTRAL_12B = RandomSpec()
# The tower has heads of 88 and an eighth of the published width of 1408; SentencePiece.
PIXTRAL_LARGE = RandomSpec(
    vision_hidden_size=176, vision_intermediate_size=768, tokenizer="sentencepiece"
)
# Merged patches, a norm before the adapter, and an adapter without biases.
MISTRAL_SMALL = RandomSpec(patch_size=14, max_image_size=1540, spatial_merge_size=2)
# The output matrix is the embedding matrix, and the heads together are wider than the model.
MINISTRAL_3 = RandomSpec(
    patch_size=14, max_image_size=1540, spatial_merge_size=2, tied=True, head_dim=64
)
# Short enough that a test's prompt is far longer; published checkpoints have 16384.
ORIGINAL_LENGTH = 32


def pixtral_12b(directory: Path) -> Path:
    return write_random_checkpoint(directory, PIXTRAL_12B)


def pixtral_large(directory: Path) -> Path:
    return write_random_checkpoint(directory, PIXTRAL_LARGE)


def mistral_small(directory: Path) -> Path:
    """The shape of Mistral-Small-3.1 and 3.2, Magistral and Devstral."""
    return write_random_checkpoint(directory, MISTRAL_SMALL)


def ministral_3(directory: Path) -> Path:
    """The shape of Ministral 3, with its stretched positions and scaled queries."""
    write_random_checkpoint(directory, MINISTRAL_3)
    path = directory / "params.json"
    params = json.loads(path.read_text("utf-8"))
    params["rope_theta"] = 1e6
    params["yarn"] = {
        "original_max_position_embeddings": ORIGINAL_LENGTH,
        "factor": 16,
        "apply_scale": False,
        "beta": 32,
        "alpha": 1,
    }
    params["llama_4_scaling"] = {
        "original_max_position_embeddings": ORIGINAL_LENGTH,
        "beta": 0.1,
    }
    path.write_text(json.dumps(params), encoding="utf-8")
    return directory
