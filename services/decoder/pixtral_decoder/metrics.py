"""The decoder's own metrics. vLLM defines the other metrics that the decoder serves."""

from prometheus_client import Gauge

ADMITTED = Gauge(
    "pixtral_decoder_requests_admitted", "Requests that wait for embeddings or are in the engine"
)
ADMITTED_LIMIT = Gauge("pixtral_decoder_requests_limit", "Requests above which others are refused")
ENGINE_UP = Gauge(
    "pixtral_decoder_engine_up", "1 from the engine's first token to its death; otherwise 0"
)
