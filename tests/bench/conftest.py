# A gateway before tiers without a model, on which a load generator is tried.
from tests.support.gateway_fixtures import (  # noqa: F401
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
