"""Options of the gRPC servers of every process."""

from typing import Final

SERVER: Final = (
    # No message is decompressed: a call with a compressed one is refused by its headers, with a
    # status that says so. One kilobyte could become a thousand, before its sender is known.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # A message that nobody reads yet stays with its sender, except for its first 512 KiB. With
    # probes, gRPC would enlarge the window of every call to what a fast connection holds, which may
    # be a whole message.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 512 << 10),
    # A client that has vanished is noticed, and its calls cancelled, within 40 seconds.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Beyond the first number gRPC drops calls that no code has seen yet, from any client, with
    # CANCELLED. Its defaults are 1,000 and 3,000, and one client reaches them in a moment. The gate
    # refuses excess calls with a status instead.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    # A client reconnects now and then, and so finds new replicas. Running calls are not cut.
    ("grpc.max_connection_age_ms", 300_000),
)
