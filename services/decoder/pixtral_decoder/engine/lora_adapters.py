"""Checks of LoRA adapters that vLLM does not make itself."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

# Parts of the names of vision weights, in the form of each library. vLLM ignores the changes of an
# adapter to these weights.
OF_IMAGES = ("vision_", "patch_merger", "multi_modal_projector", "mm_projector")

# The beginnings of the names that an adapter's weights may have: in a model of text alone, in the
# Pixtral of transformers, and in that of vLLM. PEFT may put `base_model.model.` before them. If an
# adapter has only other names, vLLM loads the adapter without effect on the answers.
OF_LANGUAGE = ("model.layers.", "model.language_model.layers.", "language_model.model.layers.")


class BadAdapter(Exception):
    """The engine does not take a LoRA adapter. The message is for the operator of the decoder."""


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
