"""The encoder: what waits, how fast it goes, and how much need not be done."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import NS, gpus, graph, new_dashboard, processes, quantiles, rate, row

ENCODER = 'grpc_service="pixtral.internal.v1.EncoderService"'


def dashboard() -> Dashboard:
    board = new_dashboard("encoder", "Pixtral: encoder", "Images to embeddings.")
    board = board.with_row(row("What waits"))
    for panel in (
        graph(
            "Queued patches",
            "Of images that are admitted and not yet embedded; beyond the limit they are refused.",
            {
                "{{instance}}": f"pixtral_encoder_queued_patches{{{NS}}}",
                "limit of one": f"max(pixtral_encoder_queue_patches_limit{{{NS}}})",
            },
        ),
        graph(
            "Backlog",
            "Seconds that the encoders need for what waits now: the signal to scale by.",
            {"backlog": f"namespace:pixtral_encoder_backlog:seconds{{{NS}}}"},
            unit="s",
        ),
        graph(
            "Wait for the tower",
            "Of a decoded image, until its batch begins.",
            quantiles("pixtral_encoder_queue_seconds"),
            unit="s",
        ),
    ):
        board = board.with_panel(panel)
    board = board.with_row(row("How fast it goes"))
    for panel in (
        graph(
            "Patches",
            "In a second; and in a second in which the tower runs, of one encoder.",
            {
                "all": rate("pixtral_encoder_batch_patches_sum"),
                "one, when busy": f"namespace:pixtral_encoder_patches:per_busy_second5m{{{NS}}}",
            },
        ),
        graph(
            "Patches in a batch",
            "Small ones at high load: the queue does not fill them.",
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
            "1 is an encoder that is never idle.",
            {"{{instance}}": rate("pixtral_encoder_encode_seconds_sum", "instance")},
            unit="percentunit",
            ceiling=1,
        ),
        graph(
            "Images encoded",
            "In a second.",
            {"{{instance}}": rate("pixtral_encoder_images_encoded_total", "instance")},
        ),
        graph(
            "Images dropped",
            "late: no caller could be in time any more; left: no caller waited any more.",
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
            "Without the gateways' handshakes.",
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
            "Where an embedding was",
            "Of all tiers: encoded by the tower, in a process, in Redis, or at the encoder.",
            {"{{result}}": rate("pixtral_embedding_requests_total", "result")},
            stacked=True,
        )
    )
