"""Chooses how gRPC waits for its sockets; a process imports this before grpc.

gRPC's own event engine gives what a socket has to say to a thread of its pool, which wakes the
thread of grpc.aio, which wakes the event loop. Without it, the thread of grpc.aio waits for the
sockets itself: one thread less to wake for each message. A GRPC_EXPERIMENTS that is set stays.
"""

import os

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
