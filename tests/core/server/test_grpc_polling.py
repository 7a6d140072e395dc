import os
import subprocess
import sys

import pytest

# Tells what is set when grpc is imported, and imports no more than that.
LOOK = """
import os, sys
class Look:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_EXPERIMENTS"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Look())
import {module}
"""


def experiments(module: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOOK.format(module=module)],
        env={k: v for k, v in os.environ.items() if k != "GRPC_EXPERIMENTS"} | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=180,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module", ["pixtral_gateway.__main__", "pixtral_gateway.worker", "bench.bare_relay"]
)
def test_what_relays_says_how_to_wait_before_grpc_is_there(module: str) -> None:
    assert experiments(module) == "-event_engine_client,-event_engine_listener"


def test_what_an_operator_says_stays() -> None:
    assert (
        experiments("pixtral_gateway.__main__", GRPC_EXPERIMENTS="tcp_rcv_lowat") == "tcp_rcv_lowat"
    )
