"""The decoder's dashboard: its queue, engine and caches."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import (
    NS,
    gpus,
    graph,
    mean,
    new_dashboard,
    of_tier,
    processes,
    quantile,
    quantiles,
    rate,
    row,
)

MARK = "pixtral_decoder_requests_limit"


def dashboard() -> Dashboard:
    board = new_dashboard("decoder", "Pixtral: decoder", "Tokens and embeddings to text.")
    board = board.with_row(row("Queues"))
    for panel in (
        graph(
            "Requests admitted",
            "In the engine, or waiting for embeddings. Beyond the limit requests are refused.",
            {
                "{{instance}}": f"pixtral_decoder_requests_admitted{{{NS}}}",
                "limit of one": f"max(pixtral_decoder_requests_limit{{{NS}}})",
            },
        ),
        graph(
            "Requests in the engine",
            "Scale by the waiting ones.",
            {
                "running at {{instance}}": f"vllm:num_requests_running{{{NS}}}",
                "waiting at {{instance}}": f"vllm:num_requests_waiting{{{NS}}}",
            },
        ),
        graph(
            "KV cache in use",
            "If it is full, requests wait or are preempted.",
            {"{{instance}}": f"vllm:kv_cache_usage_perc{{{NS}}}"},
            unit="percentunit",
            ceiling=1,
        ),
        graph(
            "Wait in the engine's queue",
            "Until a request's first step. vLLM's buckets begin at 0.3 s.",
            {
                "mean": mean("vllm:request_queue_time_seconds"),
                "p99": quantile(0.99, "vllm:request_queue_time_seconds"),
            },
            unit="s",
        ),
        graph(
            "Preemptions",
            "Requests that the engine stops for lack of KV cache, and computes again.",
            {"{{instance}}": rate("vllm:num_preemptions_total", "instance")},
        ),
        graph(
            "Engine up",
            "0 while the engine loads, and after it has died.",
            {"{{instance}}": f"pixtral_decoder_engine_up{{{NS}}}"},
            ceiling=1,
        ),
    ):
        board = board.with_panel(panel)
    board = board.with_row(row("Throughput"))
    for panel in (
        graph(
            "Tokens",
            "Per second. Prompt tokens include those from the prefix cache.",
            {
                "generated": rate("vllm:generation_tokens_total"),
                "prompt": rate("vllm:prompt_tokens_total"),
            },
        ),
        graph(
            "Time to first token",
            "In the engine alone. The gateway's dashboard has the whole time.",
            quantiles("vllm:time_to_first_token_seconds"),
            unit="s",
        ),
        graph(
            "Time between tokens",
            "Between two tokens of one answer.",
            quantiles("vllm:inter_token_latency_seconds"),
            unit="s",
        ),
        graph(
            "Prefill",
            "From the first step to the first token. vLLM's buckets begin at 0.3 s.",
            {
                "mean": mean("vllm:request_prefill_time_seconds"),
                "p99": quantile(0.99, "vllm:request_prefill_time_seconds"),
            },
            unit="s",
        ),
        graph(
            "Requests by end",
            "abort: the client is gone.",
            {"{{finished_reason}}": rate("vllm:request_success_total", "finished_reason")},
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Prompt tokens from the prefix cache",
            "If it is low for long conversations, turns do not return to their decoder, or the "
            "cache has dropped their keys and values. The second line is from host memory "
            "(kv_host_bytes).",
            {
                "from the GPU": rate("vllm:prefix_cache_hits_total")
                + " / "
                + rate("vllm:prefix_cache_queries_total"),
                "from host memory": rate("vllm:external_prefix_cache_hits_total")
                + " / "
                + rate("vllm:prefix_cache_queries_total"),
            },
            unit="percentunit",
            ceiling=1,
        ),
    ):
        board = board.with_panel(panel)
    board = board.with_row(row("Embeddings and processes"))
    where = of_tier(f"rate(pixtral_embedding_requests_total{{{NS}}}[$__rate_interval])", MARK)
    board = board.with_panel(
        graph(
            "Sources of embeddings",
            "In the process, in Redis, or at the encoder (peer).",
            {"{{result}}": f"sum by (result) ({where})"},
            stacked=True,
        )
    )
    for panel in (*processes(MARK), *gpus()):
        board = board.with_panel(panel)
    return board
