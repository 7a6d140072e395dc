"""The metrics of an encoder."""

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

IMAGES_ENCODED = Counter(
    "pixtral_encoder_images_encoded_total", "Images that went through the vision tower"
)
IMAGES_DROPPED = Counter(
    "pixtral_encoder_images_dropped_total",
    "Images that were not encoded: late, because their deadline could not be met; left, because "
    "no caller waited any more",
    ["reason"],
)
DROPPED_LATE = IMAGES_DROPPED.labels("late")
DROPPED_LEFT = IMAGES_DROPPED.labels("left")
DECODERS_ENDED = Counter(
    "pixtral_encoder_decoders_ended_total",
    "Processes that ended while they decoded an image: timeout, because it took too long; lost, "
    "by themselves",
    ["reason"],
)
DECODERS_ENDED_TIMEOUT = DECODERS_ENDED.labels("timeout")
DECODERS_ENDED_LOST = DECODERS_ENDED.labels("lost")
QUEUED_PATCHES = Gauge(
    "pixtral_encoder_queued_patches", "Patches of images that are admitted and not yet embedded"
)
QUEUE_PATCHES_LIMIT = Gauge(
    "pixtral_encoder_queue_patches_limit", "Limit of queued patches; images beyond it are refused"
)
BATCH_PATCHES = Histogram(
    "pixtral_encoder_batch_patches",
    "Patches in one run of the vision tower",
    buckets=[2**power for power in range(6, 19)],
)
QUEUE_SECONDS = Histogram(
    "pixtral_encoder_queue_seconds",
    "Time that a decoded image waits for the vision tower",
    buckets=SECONDS,
)
ENCODE_SECONDS = Histogram(
    "pixtral_encoder_encode_seconds", "Time of one run of the vision tower", buckets=SECONDS
)
