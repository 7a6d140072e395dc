"""Metrics that several tiers count alike."""

from prometheus_client import Counter

# `result`: local, redis, peer or encoded. An encoder never counts peer, a decoder never encoded.
REQUESTS = Counter(
    "pixtral_embedding_requests_total", "Requested image embeddings, by source", ["result"]
)

# Shown from the start: no rate sees a counter that begins at one.
for result in ("local", "redis", "peer", "encoded"):
    REQUESTS.labels(result)
