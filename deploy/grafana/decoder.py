"""The decoder: its queue, its engine, its caches."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import (
    NS,
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
    board = board.with_row(row("What waits"))
    for panel in (
        graph(
            "Requests admitted",
            "In the engine, or waiting for embeddings; beyond the limit they are refused.",
            {
                "{{instance}}": f"pixtral_decoder_requests_admitted{{{NS}}}",
                "limit of one": f"max(pixtral_decoder_requests_limit{{{NS}}})",
            },
        ),
        graph(
            "Requests in the engine",
            "Waiting ones are the signal to scale by.",
            {
                "running at {{instance}}": f"vllm:num_requests_running{{{NS}}}",
                "waiting at {{instance}}": f"vllm:num_requests_waiting{{{NS}}}",
            },
        ),
        graph(
            "KV cache in use",
            "Full, requests wait or are preempted.",
            {"{{instance}}": f"vllm:kv_cache_usage_perc{{{NS}}}"},
            unit="percentunit",
            ceiling=1,
        ),
        graph(
            "Wait in the engine's queue",
            "Until a request's first step; vLLM's buckets begin at 0.3 s.",
            {
                "mean": mean("vllm:request_queue_time_seconds"),
                "p99": quantile(0.99, "vllm:request_queue_time_seconds"),
            },
            unit="s",
        ),
        graph(
            "Preemptions",
            "Requests put back for want of KV cache.",
            {"{{instance}}": rate("vllm:num_preemptions_total", "instance")},
        ),
        graph(
            "Engine up",
            "0 while it loads, and once it has died.",
            {"{{instance}}": f"pixtral_decoder_engine_up{{{NS}}}"},
            ceiling=1,
        ),
    ):
        board = board.with_panel(panel)
    board = board.with_row(row("How fast it goes"))
    for panel in (
        graph(
            "Tokens",
            "In a second. Prompt tokens with those that the prefix cache held.",
            {
                "generated": rate("vllm:generation_tokens_total"),
                "prompt": rate("vllm:prompt_tokens_total"),
            },
        ),
        graph(
            "Time to first token",
            "In the engine alone; the gateway's has all the rest.",
            quantiles("vllm:time_to_first_token_seconds"),
            unit="s",
        ),
        graph(
            "Time between tokens",
            "Of one answer.",
            quantiles("vllm:inter_token_latency_seconds"),
            unit="s",
        ),
        graph(
            "Prefill",
            "From the first step to the first token; vLLM's buckets begin at 0.3 s.",
            {
                "mean": mean("vllm:request_prefill_time_seconds"),
                "p99": quantile(0.99, "vllm:request_prefill_time_seconds"),
            },
            unit="s",
        ),
        graph(
            "Requests by end",
            "abort: the client went away.",
            {"{{finished_reason}}": rate("vllm:request_success_total", "finished_reason")},
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Prompt tokens from the prefix cache",
            "Low where conversations go on: turns do not come back to their decoder, or their keys "
            "and values have gone. The second line is from host memory (kv_host_bytes).",
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
            "Where an embedding was",
            "In the process, in Redis, or at the encoder (peer).",
            {"{{result}}": f"sum by (result) ({where})"},
            stacked=True,
        )
    )
    for panel in processes(MARK):
        board = board.with_panel(panel)
    return board
