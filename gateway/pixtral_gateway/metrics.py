"""The metrics of a gateway."""

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

REQUESTS = Counter("pixtral_gateway_requests_total", "Completions ended, by status code", ["code"])
# With several workers, a gauge is the sum of the workers' values. A gauge of something that all
# workers see is the largest of their values.
PERMITS = Gauge(
    "pixtral_gateway_permits_in_use",
    "Running completions, token counts and uploads",
    multiprocess_mode="livesum",
)
PERMITS_LIMIT = Gauge(
    "pixtral_gateway_permits_limit",
    "How many completions, token counts and uploads may run at once",
    multiprocess_mode="livemax",
)
MEMORY = Gauge(
    "pixtral_gateway_memory_bytes",
    "Counted memory, by use",
    ["use"],
    multiprocess_mode="livesum",
)
MEMORY_LIMIT = Gauge(
    "pixtral_gateway_memory_limit_bytes",
    "The limit of counted memory, by use",
    ["use"],
    multiprocess_mode="livesum",
)
TIME_TO_FIRST_TOKEN = Histogram(
    "pixtral_gateway_time_to_first_token_seconds",
    "Time from a request's arrival to its first token, by the source of its images",
    ["images"],
    buckets=SECONDS,
)
ENCODE_SECONDS = Histogram(
    "pixtral_gateway_encode_seconds",
    "Time that a request waits for images that no cache has",
    buckets=SECONDS,
)
IMAGES = Counter(
    "pixtral_gateway_images_total", "Images of answered requests, by source", ["result"]
)
NAMED_IMAGES = Counter(
    "pixtral_gateway_named_images_total", "Images named by their SHA-256", ["result"]
)
FETCHES = Counter(
    "pixtral_gateway_image_fetches_total", "Fetches of images by URL, by result", ["result"]
)
FETCH_SECONDS = Histogram(
    "pixtral_gateway_image_fetch_seconds", "Time of a fetch, including failed ones", buckets=SECONDS
)
TENANT_TOKENS = Counter(
    "pixtral_gateway_tenant_tokens_total", "Tokens by tenant", ["tenant", "kind"]
)
TENANT_REFUSALS = Counter(
    "pixtral_gateway_tenant_refusals_total",
    "Requests refused for a tenant's own limit",
    ["tenant", "limit"],
)
REPLICAS = Gauge(
    "pixtral_gateway_replicas_ready",
    "Replicas that get calls",
    ["tier"],
    multiprocess_mode="livemax",
)
RETRIES = Counter(
    "pixtral_gateway_retries_total", "Calls whose first replica failed", ["tier", "result"]
)
EJECTIONS = Counter(
    "pixtral_gateway_ejections_total",
    "Replicas left out for a while, though they answered handshakes",
    ["tier", "reason"],
)
# The names and labels are those of the Prometheus middleware that vLLM's HTTP server has.
HTTP_REQUESTS = Counter(
    "http_requests_total", "HTTP requests answered, by status", ["method", "handler", "status"]
)
HTTP_SECONDS = Histogram(
    "http_request_duration_seconds",
    "Time from an HTTP request's headers to the end of its answer",
    ["method", "handler"],
    buckets=SECONDS,
)

# Each counter is shown at zero from the start, because a rate misses the event that creates a
# counter.
CODES = (
    "OK",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "UNAVAILABLE",
)
for code in CODES:
    REQUESTS.labels(code)
for use in ("incoming", "running"):
    MEMORY.labels(use)
    MEMORY_LIMIT.labels(use)
for images in ("none", "cached", "encoded"):
    TIME_TO_FIRST_TOKEN.labels(images)
for result in ("cached", "encoded"):
    IMAGES.labels(result)
for result in ("found", "missing"):
    NAMED_IMAGES.labels(result)
for result in ("fetched", "refused", "failed"):
    FETCHES.labels(result)
for tier in ("encoder", "decoder"):
    REPLICAS.labels(tier)
    for result in ("retried", "continued", "refused"):
        RETRIES.labels(tier, result)
    for reason in ("failures", "silence"):
        EJECTIONS.labels(tier, reason)
