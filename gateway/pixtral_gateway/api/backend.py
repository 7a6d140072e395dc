"""The parts of the gateway that its APIs use, once the checkpoint is loaded."""

from dataclasses import dataclass

from pixtral_gateway.images.uploads import Uploads
from pixtral_gateway.pipeline import Pipeline
from pixtral_gateway.prompt.prompt_encoder import ThinkingFormat
from pixtral_gateway.tenancy.admission import Admission
from pixtral_gateway.upstream.registry import Tiers


@dataclass(frozen=True, slots=True)
class Backend:
    """`vocabulary_size` bounds the token ids that a request may name; `thinking` says how the model
    thinks."""

    pipeline: Pipeline
    tiers: Tiers
    admission: Admission
    uploads: Uploads
    vocabulary_size: int
    thinking: ThinkingFormat
