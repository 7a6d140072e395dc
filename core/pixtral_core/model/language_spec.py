"""The language model after the cut, as far as the tiers need to know it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixtral_core.model.vision_spec import BadCheckpoint


@dataclass(frozen=True, slots=True)
class LanguageSpec:
    """Facts of a language model that code outside vLLM uses.

    Attributes:
        layers: number of layers; 0 if the checkpoint does not say.
        vocab_size: rows of its embedding matrix; all token ids are smaller.
        context_length: the most tokens of prompt and answer; None if the checkpoint does not say.
        is_tied: whether the embedding matrix is also the output matrix; no file then contains an
            output matrix.
        is_quantized: whether its weights are stored in fewer bits, with scales.
    """

    layers: int
    vocab_size: int
    context_length: int | None
    is_tied: bool
    is_quantized: bool

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "LanguageSpec":
        """Reads a `params.json`. Raises BadCheckpoint if its numbers are wrong."""
        size = params.get("vocab_size")
        if not isinstance(size, int) or size < 1:
            raise BadCheckpoint("params.json: vocab_size is missing or no number of tokens")
        named = (params.get("max_position_embeddings"), params.get("max_seq_len"))
        try:
            return cls(
                layers=int(params.get("n_layers") or 0),
                vocab_size=size,
                context_length=min((int(length) for length in named if length), default=None),
                is_tied=bool(params.get("tied_embeddings")),
                is_quantized=bool(params.get("quantization")),
            )
        except (TypeError, ValueError):
            raise BadCheckpoint(
                "params.json: n_layers or max_position_embeddings is not a number"
            ) from None
