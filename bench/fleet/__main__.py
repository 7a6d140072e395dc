"""Stock vLLM and pixtral-serve on several GPUs of one machine, asked by turns.

    python -m bench.fleet --gpus 4 --out docs/benchmarks/DATE
    python -m bench.fleet --gpus 1,2,4,8 --only "new images" Zipf --turns 3
    python -m bench.fleet --cpu 2

On N GPUs four sides answer the same loads: N servers of stock vLLM behind a router that takes them
in turn (round-robin) or by the image (sticky), and a stack of ours in each topology that
`pixtral-serve plan` has for N GPUs, encoders with GPUs of their own (split) and an encoder on each
decoder's (co-located). All start together and have the same memory for keys and values; while one
is asked the others rest. Each process sees its own GPU alone. The model has Pixtral-12B's numbers
and random weights, for GPUs of 140 GB, or it is that of `--model-dir`.

The loads are new images, images by Zipf's law, chats and ServeGen's mix, in sizes that grow with
the GPUs (`bench/workloads.py`). Each turn asks all sides for the same sizes and lengths. The router
is in the client, so that stock vLLM has no hop more. A finished turn is in fleet.json in `--out`,
and the same command goes on where it was ended: it asks what is missing, and reports without any
GPU once nothing is. `--only`, `--sides` and `--turns` name a part.

Then the simulator (docs/scaling.md) predicts each figure, by `--service-times`: a file, the name of
one of bench/service_times, or `measured`, on this machine, before anything else. Medians, ratios,
predictions and the efficiency from the fewest GPUs to more are printed; fleet.svg shows them.

`--cpu N` has N servers, or decoders, of a small random model on this machine's CPU and very small
loads, to try this command.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import uvloop

from bench.compare import pixtral_12b
from bench.decoder import model as numbers_of
from bench.fleet.asking import Task, Writer, ask_by_turns
from bench.fleet.prediction import first_turn, kv_tokens, predict
from bench.fleet.report import PLOT, plot, tables
from bench.fleet.results import Results
from bench.fleet.service_times import measured
from bench.fleet.sides import KV_CACHE_BYTES, SPLIT, STOCK_SIDES, TITLES, Fleet
from bench.module_path import ROOT
from bench.servers import started
from bench.simulation import times
from bench.simulation.plan import Topology, topologies
from bench.simulation.times import ServiceTimes
from bench.workloads import for_fleet
from models.random_checkpoint import RandomSpec, write_random_checkpoint
from pixtral_cli.up_options import gpus_here
from pixtral_core.model.vision_spec import VisionSpec, read_params

RESULTS = ROOT / "bench" / "results"
MEASURED = "measured"
NAMES = [each.name for each in for_fleet(1)]
# The unit of a fleet's size: on GPUs, and on a CPU.
UNITS = {False: "GPU", True: "CPU server"}
SERVICE_TIMES = "h200-pixtral-12b-vllm-0.33"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--gpus", type=counts, metavar="N[,N...]", help="GPUs of each fleet")
    where.add_argument(
        "--cpu", type=counts, metavar="N[,N...]", help="servers of each, without GPUs"
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, help="workloads (all)")
    parser.add_argument("--sides", nargs="+", choices=[*TITLES], default=[*TITLES], help="(all)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each workload (%(default)s)")
    parser.add_argument("--model-dir", type=Path, help="a model in Mistral's format")
    parser.add_argument(
        "--kv-cache-bytes",
        type=int,
        default=KV_CACHE_BYTES,
        help="for keys and values, of each server and decoder on a GPU (%(default)s)",
    )
    parser.add_argument(
        "--service-times",
        metavar="NAME",
        help=f"a file, one of bench/service_times, or {MEASURED} ({SERVICE_TIMES}; with --cpu: "
        f"{MEASURED})",
    )
    parser.add_argument(
        "--rounds", type=int, default=12, help="requests a kind, to measure times (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="a folder (bench/results/fleet, or fleet_on_cpu)")
    args = parser.parse_args()
    try:
        comparison = Comparison.of(args)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    comparison.run(args.rounds)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run of the command.

    Attributes:
        model_dir: None if a random model is to be made.
        gpus: the GPUs of what is still to be asked.
        times_file: where measured service times are, or are to be.
        service: service times that are known before; None if they are measured.
    """

    tasks: Sequence[Task]
    results: Results
    model_dir: Path | None
    is_small: bool
    kv_cache_bytes: int | None
    gpus: Sequence[str]
    times_file: Path
    service: ServiceTimes | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        """Raises ValueError if the arguments fit neither this machine nor the results so far."""
        is_small = args.cpu is not None
        model = "small" if is_small else "Pixtral-12B"
        if args.model_dir is not None:
            read_params(args.model_dir)
            model = args.model_dir.resolve().name
        kv_cache_bytes = None if is_small else args.kv_cache_bytes
        settings = {"model": model, "on": UNITS[is_small], "kv_cache_bytes": kv_cache_bytes}
        out = args.out or RESULTS / ("fleet_on_cpu" if is_small else "fleet")
        named = args.service_times or (MEASURED if is_small else SERVICE_TIMES)
        comparison = cls(
            tasks=[task(args, count) for count in args.cpu or args.gpus],
            results=Results(out, settings),
            model_dir=args.model_dir,
            is_small=is_small,
            kv_cache_bytes=kv_cache_bytes,
            gpus=[] if is_small else gpus_here(),
            times_file=out / "service_times.json",
            service=None if named == MEASURED else read_times(named),
        )
        if not is_small and comparison.servers_needed > len(comparison.gpus):
            raise ValueError(
                f"{comparison.servers_needed} GPUs are named, and this machine has "
                f"{len(comparison.gpus)}"
            )
        return comparison

    @property
    def is_to_measure(self) -> bool:
        return self.service is None and not self.times_file.exists()

    @property
    def servers_needed(self) -> int:
        """The most servers at once; 0 if all turns are there."""
        unfinished = [each.count for each in self.tasks if each.missing_sides(self.results)]
        return max([int(self.is_to_measure), *unfinished])

    def run(self, rounds: int) -> None:
        """Asks what is missing, predicts, and reports."""
        logs = RESULTS / "fleet_logs"
        logs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            has_weights = self.servers_needed > 0
            model_dir = self.model_dir or random_model(Path(scratch), self.is_small, has_weights)
            fleet = Fleet(
                count=1,
                gpus=self.gpus,
                model_dir=model_dir,
                is_small=self.is_small,
                is_random=self.model_dir is None,
                kv_cache_bytes=self.kv_cache_bytes,
                topologies={},
                log_dir=logs,
            )
            if self.is_to_measure:
                print(f"measuring service times; logs are in {logs}", flush=True)
                times.write(self.times_file, *measured(fleet, rounds))
            service = self.service or times.read(self.times_file)
            params = read_params(model_dir)
            if self.kv_cache_bytes is not None:
                service = replace(service, kv_tokens=kv_tokens(params, self.kv_cache_bytes))
            writer = Writer(self.is_small)
            for each in self.tasks:
                count, sides = each.count, each.missing_sides(self.results)
                fleet = replace(fleet, count=count, topologies=topologies(count, service))
                if sides:
                    print(f"starting {count}: {', '.join(sides)}; logs are in {logs}", flush=True)
                    with started(fleet.servers(sides)) as addresses:
                        uvloop.run(ask_by_turns(each, fleet, addresses, self.results, writer))
                add_predictions(each, fleet, self.results, VisionSpec.from_params(params), service)
        unit = UNITS[self.is_small]
        for line in tables(self.results.runs, unit):
            print(line)
        plot(self.results.runs, unit, self.results.directory / PLOT)


def task(args: argparse.Namespace, count: int) -> Task:
    workloads = [each for each in for_fleet(count) if each.name in (args.only or NAMES)]
    # One GPU cannot be split.
    sides = [side for side in TITLES if side in args.sides and (count > 1 or side != SPLIT)]
    if args.cpu:
        workloads = [each.small() for each in workloads]
    return Task(count, workloads, sides, args.turns)


def random_model(scratch: Path, is_small: bool, has_weights: bool) -> Path:
    """A model with random weights; at Pixtral-12B's size without them, its numbers alone."""
    if is_small:
        return write_random_checkpoint(scratch / "model", RandomSpec(dtype="bfloat16"))
    return pixtral_12b(scratch) if has_weights else numbers_of("pixtral-12b", scratch / "model")


def read_times(named: str) -> ServiceTimes:
    """A file, by its path or its name in bench/service_times."""
    path = Path(named)
    if not path.is_file():
        path = times.DIRECTORY / f"{named}.json"
    if not path.is_file():
        raise ValueError(f"{named} is no file, and none of {times.DIRECTORY}")
    return times.read(path)


def add_predictions(
    task: Task, fleet: Fleet, results: Results, vision: VisionSpec, service: ServiceTimes
) -> None:
    """For the sides that have turns."""
    for workload in task.workloads:
        sessions = first_turn(workload, fleet.is_small)
        for side in task.sides:
            if not results.turns(task.count, workload.name, side):
                continue
            is_stock = side in STOCK_SIDES
            topology = Topology(0, task.count, False) if is_stock else fleet.topologies[side]
            gateways = task.count if is_stock else fleet.workers
            found = predict(side, topology, workload, sessions, vision, service, gateways)
            results.predict(task.count, workload.name, {side: found})


def counts(text: str) -> list[int]:
    try:
        found = sorted({int(each) for each in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0, and no list of some: 1,2,4")
    return found


if __name__ == "__main__":
    main()
