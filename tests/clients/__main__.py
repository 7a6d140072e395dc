"""Runs every client's tests against one stack on the small model.

    python -m tests.clients [--only TEXT]

The packages of the clients are in environments of their own, which `make test-clients` makes.
LlamaIndex has one to itself, because it asks for an older `openai` than the others. The exit code
is 1 where a test failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pixtral_cli import pixtral_stack

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
MODEL = ROOT / "models" / "pixtral-mini"
# A machine that does much else beside takes minutes.
START_SECONDS = 400.0
CACHE = ROOT / ".cache"
FOLDERS = {
    "frameworks": CACHE / "clients" / "bin" / "python",
    "older_openai": CACHE / "clients-llama-index" / "bin" / "python",
    "commands": Path(sys.executable),
}
# Tests talk to this machine alone: clients would send or fetch more by themselves.
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "OPENAI_API_KEY": "any",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="tests whose name has this, as pytest's -k")
    only = parser.parse_args().only
    with tempfile.TemporaryDirectory() as temporary:
        stack = pixtral_stack(
            MODEL,
            dtype="f32",
            http_listen="127.0.0.1:0",
            log_dir=Path(temporary),
            start_timeout=START_SECONDS,
        )
        with stack:
            environment = {
                **os.environ,
                **QUIET,
                "OPENAI_BASE_URL": f"http://{stack.http_target}/v1",
                "PIXTRAL_CLIENTS_URL": f"http://{stack.http_target}",
                "PIXTRAL_CLIENTS_GRPC": stack.target,
            }
            results = [
                _run(python, HERE / name, only, environment) for name, python in FOLDERS.items()
            ]
    # 5: none of the folder's tests is among those that were asked for.
    return max(result for result in results if result != 5) if set(results) != {5} else 1


def _run(python: Path, folder: Path, only: str, environment: dict[str, str]) -> int:
    print(f"{folder.name}:", flush=True)
    command = [str(python), "-m", "pytest", "--quiet", "--tb=short", "--durations=5"]
    command += ["-p", "no:cacheprovider", "-c", str(HERE / "pytest.ini"), str(folder)]
    return subprocess.run([*command, "-k", only] if only else command, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
