# A gateway before tiers without a model: what a load generator is tried on.
from tests.gateway.conftest import (  # noqa: F401
    client,
    decoders,
    encoders,
    max_concurrent_requests,
    model_dir,
    more_settings,
    prompts,
    redis,
    redis_server,
    spec,
)
