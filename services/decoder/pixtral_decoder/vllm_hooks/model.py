"""Serves Pixtral without its vision tower, as a vLLM model: language model and adapter.

Library: vLLM
Changes: nothing; it is a model class that uses vLLM's official registration and model interfaces,
    and takes image embeddings from before the vision-language adapter. It builds vLLM's own Mistral
    language model. It also registers a multimodal processor, which vLLM requires but never uses.
Why: vLLM's own Pixtral takes only pixels, loads the vision tower, and needs torchvision to import.
    vLLM's ECConnector passes the embeddings from after the adapter, which are five times as large.
Upstream: https://github.com/vllm-project/vllm/pull/25233 (encoders apart, cut behind the adapter)
Versions: vLLM 0.25.1 to 0.33.0
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
)
from vllm.platforms import current_platform

from pixtral_core.hooks import Touch, check_touches
from pixtral_core.model.checkpoint import VISION_PREFIXES, weight_bytes
from pixtral_core.model.load_progress import LoadProgress
from pixtral_decoder.vllm_hooks import cpu_seeds

EMBEDDING_FIELD = "image_embeddings"
"""The name of the multimodal field with the embeddings, and of `embed_multimodal`'s argument."""

_ADAPTER = "vision_language_adapter."
_LANGUAGE = "language_model."

# PEFT's names of the language model's parts, in transformers' Pixtral and in a model of text alone.
_PEFT_NAMES = {
    "model.language_model.": "language_model.model.",
    "model.layers.": "language_model.model.layers.",
}
# The names in a checkpoint in Hugging Face's format. With `model.` before them they are those of
# transformers 4.52 and later. The order matters, because vLLM applies all entries to a name, one
# after the other.
_HF_NAMES = {
    **_PEFT_NAMES,
    "model.vision_tower.": "vision_encoder.",
    "vision_tower.": "vision_encoder.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "multi_modal_projector.linear_1.": f"{_ADAPTER}w_in.",
    "multi_modal_projector.linear_2.": f"{_ADAPTER}w_out.",
    "multi_modal_projector.patch_merger.": "patch_merger.",
    "multi_modal_projector.norm.": "pre_mm_projector_norm.",
    "lm_head": f"{_LANGUAGE}lm_head",
}
# The names of scales in Mistral's own checkpoints in 8 bits, and the names in vLLM.
_HF_SCALES = {".activation_scale": ".input_scale", ".weight_scale_inv": ".weight_scale"}

_MODELS = "vllm.model_executor.models"
_PROCESSING = "vllm.multimodal.processing"
TOUCHES = (
    Touch(
        f"{_MODELS}.registry",
        "ModelRegistry.register_model",
        parameters=("model_arch", "model_cls"),
    ),
    Touch(f"{_MODELS}.registry", "ModelRegistry.get_supported_archs"),
    Touch(f"{_MODELS}.interfaces", "SupportsMultiModal._mark_language_model"),
    Touch(f"{_MODELS}.interfaces", "SupportsMultiModal.embed_multimodal"),
    Touch(
        f"{_MODELS}.utils",
        "init_vllm_registered_model",
        parameters=("vllm_config", "hf_config", "prefix"),
    ),
    Touch(f"{_MODELS}.utils", "WeightsMapper", parameters=("orig_to_new_prefix",)),
    Touch(f"{_MODELS}.module_mapping", "MultiModelKeys.from_string_field"),
    Touch(
        "vllm.multimodal.registry",
        "MultiModalRegistry.register_processor",
        parameters=("info", "dummy_inputs"),
    ),
    Touch(_PROCESSING, "BaseProcessingInfo.get_supported_mm_limits"),
    Touch(_PROCESSING, "BaseProcessingInfo.get_mm_max_tokens_per_item"),
    Touch(_PROCESSING, "BaseDummyInputsBuilder.get_dummy_text"),
    Touch(_PROCESSING, "BaseDummyInputsBuilder.get_dummy_mm_data"),
    Touch(_PROCESSING, "BaseMultiModalProcessor._get_mm_fields_config"),
    Touch(_PROCESSING, "BaseMultiModalProcessor._get_prompt_updates"),
    Touch("vllm.model_executor.model_loader.weight_utils", "default_weight_loader"),
)

# vLLM's encoder cache contains the adapter's output of each image until the language model has
# computed the image's tokens. vLLM sizes this cache for one image or the tokens of one step. With
# room for one image only, the next image waits until the last token of the first is computed, and
# the step with the last tokens is nearly empty.
IMAGES_AT_ONCE = 4


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


def max_image_tokens(vision: Any) -> int:
    """The most [IMG] tokens that one image takes, from the checkpoint's vision parameters."""
    side = getattr(vision, "max_image_size", None) or vision.image_size
    pixels_a_token = vision.patch_size * getattr(vision, "spatial_merge_size", 1)
    return int(math.ceil(side / pixels_a_token) ** 2)


class ProcessingInfo(BaseProcessingInfo):
    """The facts about images from which vLLM sizes its encoder cache."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        return {"image": IMAGES_AT_ONCE * max_image_tokens(self.get_hf_config().vision_config)}


class _NoDummyInputs(BaseDummyInputsBuilder[ProcessingInfo]):
    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return ""

    def get_dummy_mm_data(self, *args: object, **kwargs: object) -> dict[str, object]:
        return {}


class _NoProcessor(BaseMultiModalProcessor[ProcessingInfo]):
    """The processor that vLLM requires. vLLM never uses it, because prompts come with
    embeddings."""

    def _get_mm_fields_config(self, *args: object, **kwargs: object) -> Mapping[str, Any]:
        return {}

    def _get_prompt_updates(self, *args: object, **kwargs: object) -> Sequence[Any]:
        return []


class VisionLanguageAdapter(nn.Module):
    """The vision-language adapter: `(tokens, width)` to `(tokens, hidden)`."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.w_in = nn.Linear(width, hidden, bias=bias)
        self.gelu = nn.GELU()
        self.w_out = nn.Linear(hidden, hidden, bias=bias)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.w_out(self.gelu(self.w_in(embedding)))
        return projected


@MULTIMODAL_REGISTRY.register_processor(
    _NoProcessor, info=ProcessingInfo, dummy_inputs=_NoDummyInputs
)
class PixtralEmbeddingsForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsLoRA):
    """The model with the parameter names of a checkpoint in Mistral's format.

    Its images are embeddings from before the adapter. LoRA adapters can change only the language
    model, because the vision tower runs in the encoder, which has no LoRA.
    """

    # vLLM fuses some modules into one. Quantized checkpoints and LoRA adapters have the names of
    # the parts, and vLLM finds the fused module here.
    packed_modules_mapping = {  # noqa: RUF012
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        if current_platform.is_cpu():
            # The hook begins here, because the process that runs the model also builds it, after
            # the choice of the device.
            cpu_seeds.leave_generators_alone()
        config = vllm_config.model_config.hf_config
        # vLLM reads this attribute when it inserts LoRA layers.
        self.config = config
        self._model_dir = Path(vllm_config.model_config.model)
        with self._mark_language_model(vllm_config):
            # vLLM's type for the language model is only nn.Module.
            self.language_model: Any = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.vision_language_adapter = VisionLanguageAdapter(
            config.vision_config.hidden_size,
            config.text_config.hidden_size,
            bias=getattr(config.vision_config, "adapter_bias", True),
        )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors
        # This mapper is for the names in LoRA adapters. It is an attribute of the instance, because
        # vLLM would use an attribute of the class also for the list of modules that a quantized
        # checkpoint leaves unquantized.
        self.hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix=_PEFT_NAMES)

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return None

    def get_mm_mapping(self) -> Any:
        """The roles of the modules, for LoRA adapters."""
        return MultiModelKeys.from_string_field(
            language_model="language_model.", connector=_ADAPTER, tower_model="vision_encoder."
        )

    def embed_multimodal(self, **kwargs: Any) -> list[torch.Tensor]:
        """Runs the adapter over the images of a step.

        The adapter runs for one image at a time, so that an image's values do not depend on the
        other images of the step.
        """
        embeddings = kwargs.get(EMBEDDING_FIELD)
        if embeddings is None:
            return []
        dtype = self.vision_language_adapter.w_in.weight.dtype
        return [self.vision_language_adapter(embedding.to(dtype)) for embedding in embeddings]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        return self.language_model.model(
            input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds
        )

    def compute_logits(self, hidden_states: torch.Tensor) -> Any:
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads the adapter and the language model.

        Returns the names of the parameters that it has set, which vLLM checks.
        """
        adapter = dict(self.vision_language_adapter.named_parameters())
        loaded: set[str] = set()
        # All processes of an engine load at the same pace, so that only the first logs its
        # progress.
        is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        progress = LoadProgress(weight_bytes(self._model_dir)) if is_first else None

        def language_weights() -> Iterator[tuple[str, torch.Tensor]]:
            for name, weight in weights:
                if name.startswith(_ADAPTER):
                    default_weight_loader(adapter[name.removeprefix(_ADAPTER)], weight)
                    loaded.add(name)
                elif not name.startswith(VISION_PREFIXES):
                    yield name, weight
                if progress is not None:
                    progress.add(weight.nbytes)

        language = self.language_model.load_weights(language_weights())
        return loaded | {f"{_LANGUAGE}{name}" for name in language}


@MULTIMODAL_REGISTRY.register_processor(
    _NoProcessor, info=ProcessingInfo, dummy_inputs=_NoDummyInputs
)
class HuggingFacePixtralEmbeddingsForConditionalGeneration(
    PixtralEmbeddingsForConditionalGeneration
):
    """The model with the parameter names of a checkpoint in Hugging Face's format."""

    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix=_HF_NAMES, orig_to_new_suffix=_HF_SCALES)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        renamed = type(self).hf_to_vllm_mapper.apply(weights)
        return super().load_weights(
            (name.removeprefix(_LANGUAGE), weight) for name, weight in renamed
        )
