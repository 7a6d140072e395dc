"""Checks of LoRA adapters that vLLM does not make itself."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

# Under the names of any library. vLLM ignores what an adapter changes there.
OF_IMAGES = ("vision_", "patch_merger", "multi_modal_projector", "mm_projector")

# PEFT's names of the parts that an adapter may change: in a model of text alone, in transformers'
# Pixtral, and in vLLM's. `base_model.model.` may come before them. vLLM loads an adapter with other
# names, and answers as if it had none.
OF_LANGUAGE = ("model.layers.", "model.language_model.layers.", "language_model.model.layers.")


class BadAdapter(Exception):
    """The engine does not take a LoRA adapter; the message is for the operator who starts it."""


def check_adapter(directory: Path) -> None:
    """Raises BadAdapter for an adapter that is not in PEFT's form, or changes more than the
    language model."""
    weights = directory / "adapter_model.safetensors"
    for path in (directory / "adapter_config.json", weights):
        if not path.is_file():
            raise BadAdapter(f"there is no {path}")
    try:
        with safe_open(weights, framework="pt") as tensors:
            names = tuple(tensors.keys())
    except SafetensorError:
        raise BadAdapter(f"{weights} is not in the safetensors format") from None
    if any(part in name for name in names for part in OF_IMAGES):
        raise BadAdapter(f"{weights} changes what makes embeddings of images")
    if not any(name.removeprefix("base_model.model.").startswith(OF_LANGUAGE) for name in names):
        found = f"it has {min(names)}" if names else "it has no tensor"
        raise BadAdapter(
            f"{weights} changes nothing in this model: {found}, and a name must begin with "
            f"one of {', '.join(OF_LANGUAGE)}"
        )
