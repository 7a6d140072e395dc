"""`pixtral-serve plan`: computes with the project's simulator how many GPUs a load needs."""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The coefficient of variation that ServeGen measured between a provider's requests with images.
BURSTS = 2.2


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument(
        "--reuse", type=float, required=True, help="share of images that come again, 0 to 1"
    )
    parser.add_argument(
        "--first-token",
        type=float,
        default=2.5,
        metavar="SECONDS",
        help="most seconds to the first token for 95 of 100 requests (%(default)s)",
    )
    parser.add_argument(
        "--bursts",
        action="store_true",
        help="simulate bursts, as a provider sees them, instead of a Poisson process",
    )
    parser.add_argument(
        "--output-tokens",
        type=int,
        default=100,
        help="mean number of tokens of an answer (%(default)s)",
    )
    parser.add_argument(
        "--price", type=float, default=1.0, help="price of a GPU for an hour (%(default)s)"
    )
    parser.add_argument(
        "--times",
        default="h200-pixtral-12b-vllm-0.33",
        metavar="NAME",
        help="measured times, a file of bench/service_times (%(default)s)",
    )


def run_plan(options: argparse.Namespace, root: Path = ROOT) -> int:
    """Prints the fewest GPUs that the load needs: split, co-located, and with stock vLLM. It takes
    minutes.

    Raises ValueError if an argument is wrong, or if this is not a checkout of the project.
    """
    if not (root / "bench" / "simulate.py").is_file():
        raise ValueError(
            "plan needs the simulator, which the package does not have: clone the project's "
            "source, run `make setup` there, and then `.venv/bin/pixtral-serve plan`"
        )
    if not 0 <= options.reuse < 1:
        raise ValueError("--reuse must be at least 0 and below 1")
    if min(options.rate, options.first_token, options.output_tokens) <= 0:
        raise ValueError("--rate, --first-token and --output-tokens must be above 0")
    command = [sys.executable, "-m", "bench.simulate", "plan"]
    command += [f"--rate={options.rate}", f"--reuse={options.reuse}"]
    command += [f"--slo={options.first_token}", f"--price={options.price}"]
    command += [f"--output-tokens={options.output_tokens}", f"--times={options.times}"]
    command += [f"--variation={BURSTS if options.bursts else 1.0}"]
    # The arguments were checked above, and no shell reads them.
    return subprocess.run(command, cwd=root, check=False).returncode  # noqa: S603
