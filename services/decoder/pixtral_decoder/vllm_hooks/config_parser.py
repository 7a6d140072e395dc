"""How vLLM reads a checkpoint's `params.json`."""

from pathlib import Path
from typing import Any

from vllm.transformers_utils.config_parser_base import ConfigParserBase
from vllm.transformers_utils.configs.mistral import adapt_config_dict

from pixtral_core.model.vision_spec import read_params

# What vLLM and mistral-inference take where `params.json` does not say.
CONTEXT_LENGTH = 128_000


class ParamsParser(ConfigParserBase):  # type: ignore[misc]
    """vLLM's own parser, but for a model that does not name its context length.

    Published Pixtrals do not. vLLM then looks for a Hugging Face config beside it, in vain and
    with pauses between the attempts: 10 s of start-up.
    """

    def parse(
        self, model: str | Path, *args: object, **kwargs: object
    ) -> tuple[dict[str, Any], Any]:
        params = read_params(Path(model))
        params.setdefault("max_position_embeddings", CONTEXT_LENGTH)
        return params, adapt_config_dict(params, defaults={})
