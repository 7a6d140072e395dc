"""Chooses how gRPC waits for its sockets; a process imports this before grpc.

With gRPC's own event engine, a thread of a pool reads a socket, wakes the thread of grpc.aio, and
that wakes the event loop. Without it, the thread of grpc.aio waits for the sockets itself, so each
message wakes one thread less. If the environment already has GRPC_EXPERIMENTS, its value stays.
"""

import os

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
