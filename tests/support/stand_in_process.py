"""A process that behaves like a tier towards its supervisor.

    python stand_in.py --note FILE [--child] [--ignore-sigterm] [--never-serve] [--fail MESSAGE]
        [--loaded PERCENT]
        --address-file FILE [flags of other tiers]

It listens, writes its addresses, and is healthy unless a flag says otherwise. It can leave a child
process, as a vLLM server does. FILE gets a JSON object with its process id, its child's, its
arguments and the URL of its Redis.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--note", type=Path, required=True)
    parser.add_argument("--address-file", type=Path, required=True)
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--never-serve", action="store_true")
    parser.add_argument("--fail")
    parser.add_argument("--loaded")
    options, rest = parser.parse_known_args()
    if options.fail:
        sys.exit(options.fail)

    stopped = threading.Event()
    ignore = options.ignore_sigterm
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignore else lambda *_: stopped.set())
    # A child that ignores every signal except SIGKILL, and can outlive its parent.
    child = None
    if options.child:
        stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
        child = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
    options.note.write_text(
        json.dumps(
            {
                "pid": os.getpid(),
                "child": child.pid if child else None,
                "arguments": rest,
                "redis": os.environ.get("PIXTRAL_REDIS_URL"),
            }
        )
    )

    if options.loaded:
        Path(os.environ["PIXTRAL_LOADED_FILE"]).write_text(options.loaded)

    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    if options.never_serve:
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    partial = options.address_file.with_suffix(".partial")
    partial.write_text(json.dumps({"grpc": f"127.0.0.1:{port}", "metrics": "127.0.0.1:1"}))
    partial.rename(options.address_file)
    stopped.wait()
    server.stop(None)
    # A real server would wait for its child. Here the supervisor must end the child.
    os._exit(0)


if __name__ == "__main__":
    main()
