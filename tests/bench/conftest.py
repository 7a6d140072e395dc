# A gateway before tiers without a model: what a load generator is tried on.
from tests.gateway.conftest import (  # noqa: F401
    client,
    decoders,
    encoders,
    model_dir,
    prompts,
    redis,
    redis_server,
    spec,
)
