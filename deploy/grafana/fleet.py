"""The dashboard of the whole fleet: its health, and the tier that needs replicas."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import NS, graph, new_dashboard, number, quantile, quantiles, rate, row

FIRST_TOKEN = "pixtral_gateway_time_to_first_token_seconds"  # noqa: S105
ERRORS = "namespace:pixtral_gateway_errors:ratio"
FIRING = 'alertstate="firing", service="pixtral-serve"'
LATE = "namespace:pixtral_gateway_slow_first_token:ratio"


def dashboard() -> Dashboard:
    board = new_dashboard("fleet", "Pixtral: fleet", "Health, and the load of each tier.")
    board = board.with_row(row("Health"))
    for panel in (
        number(
            "Completions",
            "Ended per second.",
            rate("pixtral_gateway_requests_total"),
            unit="reqps",
        ),
        number(
            "Errors",
            "Share of completions in 5 minutes that ended because of a fault of the service.",
            f"{ERRORS}_rate5m{{{NS}}}",
            unit="percentunit",
            decimals=2,
            objective=0.005,
        ),
        number(
            "First token, p95",
            "From the request's arrival.",
            quantile(0.95, FIRST_TOKEN),
            unit="s",
            objective=2.5,
        ),
        number(
            "Late answers",
            "Share of answers in 5 minutes that began after more than 2.5 s.",
            f"{LATE}_rate5m{{{NS}}}",
            unit="percentunit",
            decimals=2,
            objective=0.05,
        ),
        number(
            "Images from the cache",
            "Share over 15 minutes.",
            f"namespace:pixtral_gateway_image_hits:ratio_rate15m{{{NS}}}",
            unit="percentunit",
        ),
        number(
            "Answers running",
            "Admission permits in use.",
            f"sum(pixtral_gateway_permits_in_use{{{NS}}})",
        ),
    ):
        board = board.with_panel(panel)
    board = board.with_row(row("Answers"))
    for graph_panel in (
        graph(
            "Completions by code",
            "RESOURCE_EXHAUSTED means overload, refused at once.",
            {"{{code}}": rate("pixtral_gateway_requests_total", "code")},
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Time to first token, p95",
            "Each line has the requests whose images were found in one way.",
            {"images: {{images}}": quantile(0.95, FIRST_TOKEN, "images")},
            unit="s",
        ),
        graph(
            "Tokens generated",
            "Per second, by all decoders.",
            {"tokens": rate("vllm:generation_tokens_total")},
        ),
        graph(
            "Time per output token",
            "Between two tokens of an answer.",
            quantiles("vllm:inter_token_latency_seconds"),
            unit="s",
        ),
        graph(
            "Firing alerts",
            "docs/runbook.md has a section for each.",
            {"{{alertname}}": f"sum by (alertname) (ALERTS{{{NS}, {FIRING}}})"},
            stacked=True,
        ),
        graph(
            "Burn of the month's budgets",
            "1 spends exactly the budget; 14.4 over an hour pages.",
            {
                "errors, 1 h": f"{ERRORS}_rate1h{{{NS}}} / 0.005",
                "errors, 6 h": f"{ERRORS}_rate6h{{{NS}}} / 0.005",
                "late, 1 h": f"{LATE}_rate1h{{{NS}}} / 0.05",
                "late, 6 h": f"{LATE}_rate6h{{{NS}}} / 0.05",
            },
        ),
    ):
        board = board.with_panel(graph_panel)
    board = board.with_row(row("Load of each tier"))
    for graph_panel in (
        graph(
            "Gateway: permits in use",
            "If it stays above 90 %: add gateways, or replicas of the tiers behind them.",
            {"in use": f"namespace:pixtral_gateway_permits:utilization{{{NS}}}"},
            unit="percentunit",
            ceiling=1,
        ),
        graph(
            "Encoder: backlog",
            "Seconds that the encoders need for all waiting images.",
            {"backlog": f"namespace:pixtral_encoder_backlog:seconds{{{NS}}}"},
            unit="s",
        ),
        graph(
            "Decoder: requests",
            "If requests wait for long: add decoders.",
            {
                "running": f"sum(vllm:num_requests_running{{{NS}}})",
                "waiting": f"sum(vllm:num_requests_waiting{{{NS}}})",
            },
            stacked=True,
        ),
        graph(
            "Decoder: KV cache in use",
            "The fullest and the emptiest decoder.",
            {
                "most": f"max(vllm:kv_cache_usage_perc{{{NS}}})",
                "least": f"min(vllm:kv_cache_usage_perc{{{NS}}})",
            },
            unit="percentunit",
            ceiling=1,
        ),
        graph(
            "Refused for overload",
            "Share of calls that a service refused with RESOURCE_EXHAUSTED, or HTTP with 429.",
            {
                "{{grpc_service}}": f"namespace_service:grpc_server_refused:ratio_rate5m{{{NS}}}",
                "HTTP": f"namespace:http_requests_refused:ratio_rate5m{{{NS}}}",
            },
            unit="percentunit",
        ),
        graph(
            "Processes",
            "Processes that answer scrapes; decoders only once their engine is up.",
            {
                "gateways": f"count(pixtral_gateway_permits_limit{{{NS}}})",
                "encoders": f"count(pixtral_encoder_queue_patches_limit{{{NS}}})",
                "decoders": f"sum(pixtral_decoder_engine_up{{{NS}}})",
                "release {{version}}": f"count by (version) (pixtral_build_info{{{NS}}})",
            },
        ),
    ):
        board = board.with_panel(graph_panel)
    board = board.with_row(row("Image embeddings"))
    for graph_panel in (
        graph(
            "Images of answered requests",
            "A cached image needed no encoding.",
            {"{{result}}": rate("pixtral_gateway_images_total", "result")},
            stacked=True,
        ),
        graph(
            "Redis: failed operations",
            "Each counts as a miss: answers stay right, but become slower.",
            {"{{reason}}": rate("pixtral_embedding_store_failures_total", "reason")},
        ),
        graph(
            "Redis: time of an operation, p99",
            "As the tiers measure it.",
            {"{{operation}}": quantile(0.99, "pixtral_embedding_store_seconds", "operation")},
            unit="s",
        ),
    ):
        board = board.with_panel(graph_panel)
    return board
