"""The part of the gateway that its APIs stand on, once the checkpoint is loaded."""

from dataclasses import dataclass

from pixtral_gateway.images.uploads import Uploads
from pixtral_gateway.pipeline import Pipeline
from pixtral_gateway.prompt.prompt_encoder import ThinkingFormat
from pixtral_gateway.tenancy.admission import Admission
from pixtral_gateway.upstream.registry import Tiers


@dataclass(frozen=True, slots=True)
class Backend:
    """`vocabulary_size` bounds the token ids that a request may name; `thinking` is the model's."""

    pipeline: Pipeline
    tiers: Tiers
    admission: Admission
    uploads: Uploads
    vocabulary_size: int
    thinking: ThinkingFormat
