"""Metrics that several tiers count alike."""

from prometheus_client import Counter

# `result`: local, redis, peer or encoded. An encoder never counts `peer`, and a decoder never
# counts `encoded`.
REQUESTS = Counter(
    "pixtral_embedding_requests_total", "Requested image embeddings, by source", ["result"]
)

# Each counter is shown at zero from the start, because a rate misses the event that creates a
# counter.
for result in ("local", "redis", "peer", "encoded"):
    REQUESTS.labels(result)
