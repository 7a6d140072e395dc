"""The gateway's dashboard: its requests, its limits, and the replicas behind it."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import (
    NS,
    graph,
    new_dashboard,
    processes,
    quantile,
    quantiles,
    rate,
    row,
)

CHAT = 'grpc_service="pixtral.v1.ChatService"'


def dashboard() -> Dashboard:
    board = new_dashboard("gateway", "Pixtral: gateway", "The entry of all requests.")
    board = board.with_row(row("Calls"))
    for panel in (
        graph(
            "Calls by method",
            "Started per second.",
            {"{{grpc_method}}": rate("grpc_server_started_total", "grpc_method", where=CHAT)},
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Calls by code",
            "Includes calls that are refused before they become a completion.",
            {"{{grpc_code}}": rate("grpc_server_handled_total", "grpc_code", where=CHAT)},
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Time of a call, p95",
            "A stream's call lasts until its last token.",
            {
                "{{grpc_method}}": quantile(
                    0.95, "grpc_server_handling_seconds", "grpc_method", where=CHAT
                )
            },
            unit="s",
        ),
    ):
        board = board.with_panel(panel)
    board = board.with_row(row("Completions"))
    for panel in (
        graph(
            "Time to first token",
            "From a request's arrival.",
            quantiles("pixtral_gateway_time_to_first_token_seconds"),
            unit="s",
        ),
        graph(
            "Wait for images",
            "Counts only requests with images that were in no cache.",
            quantiles("pixtral_gateway_encode_seconds"),
            unit="s",
        ),
        graph(
            "Permits in use",
            "Beyond the limit the gateway refuses requests at once.",
            {
                "{{instance}}": f"pixtral_gateway_permits_in_use{{{NS}}}",
                "limit of one": f"max(pixtral_gateway_permits_limit{{{NS}}})",
            },
        ),
        graph(
            "Memory of requests",
            "As a share of its limit. Beyond it the gateway refuses requests at once.",
            {
                "{{use}} at {{instance}}": (
                    f"pixtral_gateway_memory_bytes{{{NS}}} "
                    f"/ pixtral_gateway_memory_limit_bytes{{{NS}}}"
                )
            },
            unit="percentunit",
        ),
        graph(
            "Completions by code",
            "CANCELLED: the client is gone. DEADLINE_EXCEEDED: its timeout passed.",
            {"{{code}}": rate("pixtral_gateway_requests_total", "code")},
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Images",
            "In answered requests.",
            {"{{result}}": rate("pixtral_gateway_images_total", "result")},
            stacked=True,
        ),
        graph(
            "Replicas that fit",
            "As each gateway sees them.",
            {"{{tier}}s at {{instance}}": f"pixtral_gateway_replicas_ready{{{NS}}}"},
        ),
    ):
        board = board.with_panel(panel)
    board = board.with_row(row("HTTP"))
    for panel in (
        graph(
            "Requests by route",
            "Ended per second.",
            {"{{method}} {{handler}}": rate("http_requests_total", "method", "handler")},
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Requests by status",
            "499: the client is gone. A stream that fails midway counts as 200 here.",
            {"{{status}}": rate("http_requests_total", "status")},
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Time of a request, p95",
            "A stream's request lasts until its last event.",
            {"{{handler}}": quantile(0.95, "http_request_duration_seconds", "handler")},
            unit="s",
        ),
    ):
        board = board.with_panel(panel)
    board = board.with_row(row("Replicas, images and tenants"))
    for panel in (
        graph(
            "Calls whose replica failed",
            "retried or continued: by another replica; refused: no retry budget was left.",
            {"{{tier}}: {{result}}": rate("pixtral_gateway_retries_total", "tier", "result")},
            stacked=True,
        ),
        graph(
            "Replicas left out",
            "Because of failures of calls, or of silence.",
            {"{{tier}}: {{reason}}": rate("pixtral_gateway_ejections_total", "tier", "reason")},
            stacked=True,
        ),
        graph(
            "Images by name",
            "missing: the client sends the file again.",
            {"{{result}}": rate("pixtral_gateway_named_images_total", "result")},
            stacked=True,
        ),
        graph(
            "Images by URL",
            "refused: the URL is not allowed, or the file is too large.",
            {"{{result}}": rate("pixtral_gateway_image_fetches_total", "result")},
            stacked=True,
        ),
        graph(
            "Time of a fetch",
            "From the name lookup to the last byte.",
            quantiles("pixtral_gateway_image_fetch_seconds"),
            unit="s",
        ),
        graph(
            "Tokens by tenant",
            "Per second, of prompts and of completions.",
            {"{{tenant}}: {{kind}}": rate("pixtral_gateway_tenant_tokens_total", "tenant", "kind")},
            stacked=True,
        ),
        graph(
            "Refused for a tenant's limit",
            "The limits of requests at once, and of tokens or images a minute.",
            {
                "{{tenant}}: {{limit}}": rate(
                    "pixtral_gateway_tenant_refusals_total", "tenant", "limit"
                )
            },
            stacked=True,
        ),
    ):
        board = board.with_panel(panel)
    board = board.with_row(row("Processes"))
    for panel in processes("pixtral_gateway_permits_limit"):
        board = board.with_panel(panel)
    return board.with_panel(
        graph(
            "Redis: existence checks, p99",
            "One round trip for all images of a request.",
            {
                "{{instance}}": quantile(
                    0.99,
                    "pixtral_embedding_store_seconds",
                    "instance",
                    where='operation="exist"',
                )
            },
            unit="s",
        )
    )
