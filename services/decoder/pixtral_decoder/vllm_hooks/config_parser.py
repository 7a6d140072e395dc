"""Reads a checkpoint's `params.json`, or its `config.json`, for vLLM.

Library: vLLM
Changes: registers a config format, `pixtral-params`, through vLLM's official interface. In a
    decoder's processes it also replaces vLLM's own format `mistral`, because vLLM's tokenizer
    loader always chooses that format for such a checkpoint.
Why: published Pixtrals do not state their context length. vLLM then looks for a Hugging Face config
    beside the checkpoint. It finds none, and pauses between its attempts delay the start. vLLM's
    Mistral reads the scaling of queries in long contexts (Ministral 3) from `params.json`, and
    ignores it in `config.json`.
Upstream: https://github.com/vllm-project/vllm/pull/57279 (about the length, not about the attempts)
Versions: vLLM 0.25.1 to 0.33.0
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.transformers_utils.config import HFConfigParser, register_config_parser
from vllm.transformers_utils.config_parser_base import ConfigParserBase
from vllm.transformers_utils.configs.mistral import adapt_config_dict

from pixtral_core.hooks import Touch, check_touches
from pixtral_core.model.checkpoint import read_language, read_spec
from pixtral_core.model.hugging_face import is_hugging_face
from pixtral_core.model.vision_spec import read_params

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# vLLM and mistral-inference use this context length if `params.json` has none.
CONTEXT_LENGTH = 128_000

_PACKAGE = "vllm.transformers_utils"
TOUCHES = (
    Touch(f"{_PACKAGE}.config", "register_config_parser", parameters=("config_format",)),
    Touch(f"{_PACKAGE}.config", "MistralConfigParser.parse", mentions=("adapt_config_dict",)),
    Touch(f"{_PACKAGE}.config", "HFConfigParser.parse", parameters=("model",)),
    Touch(f"{_PACKAGE}.config_parser_base", "ConfigParserBase.parse", parameters=("model",)),
    Touch(
        f"{_PACKAGE}.configs.mistral", "adapt_config_dict", parameters=("config_dict", "defaults")
    ),
    Touch(
        "vllm.model_executor.models.mistral",
        "MistralAttention.__init__",
        mentions=("llama_4_scaling", "original_max_position_embeddings", "beta"),
    ),
)


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


def register(config_format: str, *, is_decoders: bool) -> None:
    """Registers the parser in this process. In a decoder's process it also replaces vLLM's own."""
    register_config_parser(config_format)(ParamsParser)
    if is_decoders:
        with _replaced_on_purpose():
            register_config_parser("mistral")(ParamsParser)


@contextmanager
def _replaced_on_purpose() -> Iterator[None]:
    # vLLM warns when a format is registered twice. Here the second registration is deliberate, so
    # the warning would only mislead an operator.
    logger = logging.getLogger(register_config_parser.__module__)

    def is_of_something_else(record: logging.LogRecord) -> bool:
        return "already registered" not in record.getMessage()

    logger.addFilter(is_of_something_else)
    try:
        yield
    finally:
        logger.removeFilter(is_of_something_else)


class ParamsParser(ConfigParserBase):
    """Runs vLLM's own parsers, and adds the fields that they leave out for Pixtral models."""

    def parse(
        self, model: str | Path, *args: Any, **kwargs: Any
    ) -> "tuple[dict[str, Any], PreTrainedConfig]":
        if is_hugging_face(Path(model)):
            found, config = HFConfigParser().parse(model, *args, **kwargs)
            return found, _completed(Path(model), config)
        params = read_params(Path(model))
        params.setdefault("max_position_embeddings", CONTEXT_LENGTH)
        return params, adapt_config_dict(params, defaults={})


def _completed(model_dir: Path, config: Any) -> "PreTrainedConfig":
    """Adds to transformers' config the fields that the decoder's model and vLLM's Mistral read."""
    spec, text, vision = read_spec(model_dir), config.text_config, config.vision_config
    text.architectures = ["MistralForCausalLM"]
    text.tie_word_embeddings = read_language(model_dir).is_tied
    rope = getattr(text, "rope_parameters", None) or {}
    if beta := rope.get("llama_4_scaling_beta"):
        longest = rope["original_max_position_embeddings"]
        text.llama_4_scaling = {"beta": beta, "original_max_position_embeddings": longest}
    vision.max_image_size = spec.max_image_size
    vision.spatial_merge_size = spec.merge_size
    vision.adapter_bias = spec.adapter_bias
    completed: PreTrainedConfig = config
    return completed
