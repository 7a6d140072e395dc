"""Breaks the running service on a seeded schedule, and holds every answer against the right one.

    python -m tests.faults [--seed N] [--minutes 30] [--only REGEX] [--keep DIRECTORY] [--plant BUG]

Two gateways, encoders and decoders, a Redis, and a proxy on every way between them. Users of three
tenants ask without a pause; the right answer to each is known in advance. The exit code is 1 where
a promise was broken, and the output has the seed, with which to try again.
"""

import argparse
import asyncio
import logging
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch

from tests.faults.checker import Violation
from tests.faults.history import History
from tests.faults.mutated import MUTATIONS
from tests.faults.report import summary, table
from tests.faults.run import run

DEFAULT_SEED = 1
MOST_SHOWN = 20


async def to_its_end(given: argparse.Namespace, directory: Path) -> tuple[History, list[Violation]]:
    """A run that SIGTERM ends as Ctrl-C does: nothing that it has started stays."""
    task = asyncio.ensure_future(run(given.seed, given.minutes, directory, given.only, given.plant))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--only", default="", help="faults whose names match this")
    parser.add_argument("--keep", type=Path, help="where logs and the history are to stay")
    parser.add_argument("--plant", default="", choices=["", *MUTATIONS], help="a bug to be found")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"seed {given.seed}", flush=True)
    # The effects of the faults on connections are no news.
    logging.disable(logging.ERROR)
    with ExitStack() as stack:
        directory = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        try:
            history, violations = asyncio.run(to_its_end(given, directory))
        except asyncio.CancelledError:
            sys.exit(128 + signal.SIGTERM)
        history.write(directory / "history.jsonl")
    print(table(history))
    print(summary(history, violations))
    for violation in violations[:MOST_SHOWN]:
        print(violation)
    if violations:
        print(f"{len(violations)} promises broken; again: --seed {given.seed}")
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
