"""Small random checkpoints in the shapes of the published models, in Mistral format."""

import json
from pathlib import Path

from models.random_checkpoint import RandomSpec, write_random_checkpoint

PIXTRAL_12B = RandomSpec()
# Heads of 88 in the tower, an eighth of the published 1408 wide, and SentencePiece.
PIXTRAL_LARGE = RandomSpec(
    vision_hidden_size=176, vision_intermediate_size=768, tokenizer="sentencepiece"
)
# Merged patches, a norm before the adapter, and no biases in it.
MISTRAL_SMALL = RandomSpec(patch_size=14, max_image_size=1540, spatial_merge_size=2)
# The output is the embeddings, and the heads together are wider than the model.
MINISTRAL_3 = RandomSpec(
    patch_size=14, max_image_size=1540, spatial_merge_size=2, tied=True, head_dim=64
)
# So short that a test's prompt goes far beyond it: published ones have 16384.
ORIGINAL_LENGTH = 32


def pixtral_12b(directory: Path) -> Path:
    return write_random_checkpoint(directory, PIXTRAL_12B)


def pixtral_large(directory: Path) -> Path:
    return write_random_checkpoint(directory, PIXTRAL_LARGE)


def mistral_small(directory: Path) -> Path:
    """3.1 and 3.2, Magistral, Devstral."""
    return write_random_checkpoint(directory, MISTRAL_SMALL)


def ministral_3(directory: Path) -> Path:
    """With the stretched positions and scaled queries of Ministral 3."""
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
