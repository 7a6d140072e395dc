"""Options of the gRPC servers that every process has."""

from typing import Final

SERVER: Final = (
    # No message is unpacked: the call of who packs one is refused by its headers, with a status
    # that says so. One kilobyte would become a thousand, before anyone knows whose it is.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # A client that vanished is noticed, and its calls cancelled, within 40 seconds.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Beyond the first number gRPC drops calls that nobody has looked at yet, whosever they are, and
    # tells CANCELLED. Its own are 1,000 and 3,000: one client has them in a moment, and what is too
    # much is for the gate to refuse, with a status.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    # A client connects anew now and then, and so to replicas that were not there before. Calls
    # under way are not cut.
    ("grpc.max_connection_age_ms", 300_000),
)
