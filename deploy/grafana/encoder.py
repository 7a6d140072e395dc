"""The encoder's dashboard: its queue, its speed, and the work that caches save."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import NS, gpus, graph, new_dashboard, processes, quantiles, rate, row

ENCODER = 'grpc_service="pixtral.internal.v1.EncoderService"'


def dashboard() -> Dashboard:
    board = new_dashboard("encoder", "Pixtral: encoder", "Images to embeddings.")
    board = board.with_row(row("Queues"))
    for panel in (
        graph(
            "Queued patches",
            "Admitted images have no embedding yet. The encoder refuses images beyond the limit.",
            {
                "{{instance}}": f"pixtral_encoder_queued_patches{{{NS}}}",
                "limit of one": f"max(pixtral_encoder_queue_patches_limit{{{NS}}})",
            },
        ),
        graph(
            "Backlog",
            "Seconds that the encoders need for all waiting images. Scale by it.",
            {"backlog": f"namespace:pixtral_encoder_backlog:seconds{{{NS}}}"},
            unit="s",
        ),
        graph(
            "Wait for the tower",
            "From the decoded image to the start of its batch.",
            quantiles("pixtral_encoder_queue_seconds"),
            unit="s",
        ),
    ):
        board = board.with_panel(panel)
    board = board.with_row(row("Throughput"))
    for panel in (
        graph(
            "Patches",
            "Per second, of all encoders; and of one encoder per second in which its tower runs.",
            {
                "all": rate("pixtral_encoder_batch_patches_sum"),
                "one, when busy": f"namespace:pixtral_encoder_patches:per_busy_second5m{{{NS}}}",
            },
        ),
        graph(
            "Patches in a batch",
            "If they are small under high load, the queue does not fill the batches.",
            quantiles("pixtral_encoder_batch_patches"),
        ),
        graph(
            "Time of a batch",
            "One run of the tower.",
            quantiles("pixtral_encoder_encode_seconds"),
            unit="s",
        ),
        graph(
            "Share of time in which the tower runs",
            "1 means that an encoder is never idle.",
            {"{{instance}}": rate("pixtral_encoder_encode_seconds_sum", "instance")},
            unit="percentunit",
            ceiling=1,
        ),
        graph(
            "Images encoded",
            "Per second.",
            {"{{instance}}": rate("pixtral_encoder_images_encoded_total", "instance")},
        ),
        graph(
            "Images dropped",
            "late: too late for every caller; left: no caller waits any more.",
            {"{{reason}}": rate("pixtral_encoder_images_dropped_total", "reason")},
            stacked=True,
        ),
        graph(
            "Decoding processes ended",
            "timeout: an image took too long to decode; lost: a process ended by itself.",
            {"{{reason}}": rate("pixtral_encoder_decoders_ended_total", "reason")},
            stacked=True,
        ),
        graph(
            "Calls by code",
            "Without the handshakes of gateways.",
            {
                "{{grpc_method}}: {{grpc_code}}": rate(
                    "grpc_server_handled_total",
                    "grpc_method",
                    "grpc_code",
                    where=f'{ENCODER}, grpc_method!="GetEncoderInfo"',
                )
            },
            unit="reqps",
        ),
    ):
        board = board.with_panel(panel)
    board = board.with_row(row("Processes"))
    for panel in (*processes("pixtral_encoder_queue_patches_limit"), *gpus()):
        board = board.with_panel(panel)
    return board.with_panel(
        graph(
            "Sources of embeddings",
            "In all tiers: encoded by the tower, in a process, in Redis, or at the encoder.",
            {"{{result}}": rate("pixtral_embedding_requests_total", "result")},
            stacked=True,
        )
    )
