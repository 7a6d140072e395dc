"""Simulates the tiers: service times, a check against a real run, scaling, placement and sizing.

    python -m bench.simulate measure --model-dir DIR    # service times of a stack on this machine
    python -m bench.simulate check --model-dir DIR      # the same arrivals to both, and the ratio
    python -m bench.simulate scale                      # draws the autoscaler at work
    python -m bench.simulate thresholds                 # compares thresholds of a decoder
    python -m bench.simulate placement                  # compares three policies of placement
    python -m bench.simulate plan --rate 20 --reuse 0.5 --slo 2.5 --price 4

docs/scaling.md describes the model and its results.
"""

import argparse
import asyncio
from pathlib import Path

from bench.module_path import ROOT
from bench.simulation import times
from bench.simulation.arrivals import Traffic
from bench.simulation.check import compare, table
from bench.simulation.fleet import Starts
from bench.simulation.measure import measure
from bench.simulation.placement import GATEWAYS, TRACES, Bench
from bench.simulation.placement import table as placement_table
from bench.simulation.plan import Planner
from bench.simulation.plan import table as plan_table
from bench.simulation.scenes import SCENES, compare_thresholds, draw
from pixtral_cli import pixtral_stack


def measure_here(given: argparse.Namespace) -> None:
    with pixtral_stack(given.model_dir) as stack:
        found, sources = asyncio.run(measure(stack, given.rounds))
    times.write(given.output, found, sources)
    print(f"written to {given.output}")


def check(given: argparse.Namespace) -> None:
    """Measures service times first, because a machine's other work changes from hour to hour."""
    with pixtral_stack(given.model_dir) as stack:
        found, _ = asyncio.run(measure(stack, given.rounds))
        print(table(compare(stack, found, given.rates, given.seconds, given.seed)))


def scale(given: argparse.Namespace) -> None:
    traffic = Traffic(reuse=given.reuse, output_tokens=given.output_tokens)
    starts = Starts(given.gateway_start, given.encoder_start, given.decoder_start)
    for scene in SCENES:
        path = given.directory / f"scaling-{scene.name}.png"
        print(draw(scene, times.load(given.times), traffic, starts, given.seed, path))


def thresholds(given: argparse.Namespace) -> None:
    traffic = Traffic(reuse=given.reuse, output_tokens=given.output_tokens)
    starts = Starts(given.gateway_start, given.encoder_start, given.decoder_start)
    loaded = times.load(given.times)
    for line in compare_thresholds(loaded, traffic, starts, given.seed, given.thresholds):
        print(line, flush=True)


def placement(given: argparse.Namespace) -> None:
    bench = Bench(times.load(given.times), given.seed, given.gateways, given.colocated)
    for line in placement_table(bench.compare(given.decoders, given.loads)):
        print(line, flush=True)


def plan(given: argparse.Namespace) -> None:
    traffic = Traffic(
        reuse=given.reuse,
        window=given.window,
        output_tokens=given.output_tokens,
        variation=given.variation,
    )
    planner = Planner(times.load(given.times), given.rate, given.slo, traffic, given.seed)
    print(plan_table(planner, given.price))
    print("\nFrom a simulation with these service times:")
    for name, source in times.sources(given.times).items():
        print(f"  {name}: {source}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: object, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        added.set_defaults(run=run)
        added.add_argument("--seed", type=int, default=1, help="seed of the arrivals")
        return added

    real = [
        command("measure", measure_here, "service times of a stack on this machine"),
        command("check", check, "the same arrivals to a real stack and to the simulation"),
    ]
    for each in real:
        each.add_argument("--model-dir", type=Path, required=True)
        each.add_argument("--rounds", type=int, default=20, help="requests of each kind of work")
    measured = times.DIRECTORY / "cpu-small.json"
    real[0].add_argument("--output", type=Path, default=measured, help="where to write them")
    real[1].add_argument("--rates", type=float, nargs="+", default=[0.5, 1.5, 2.5, 6.0])
    real[1].add_argument(
        "--seconds", type=float, default=60.0, help="seconds of arrivals at each rate"
    )

    scaled = [
        command("scale", scale, "draw the autoscaler at work"),
        command("thresholds", thresholds, "compare numbers of requests for each decoder"),
    ]
    imagined = [
        *scaled,
        command("plan", plan, "replicas for a load, and the cost of a million images"),
    ]
    placed = command("placement", placement, "compare three policies of placement")
    placed.add_argument("--decoders", type=int, nargs="+", default=[2, 4, 8, 16])
    placed.add_argument("--loads", nargs="+", choices=TRACES, default=list(TRACES))
    placed.add_argument("--gateways", type=int, default=GATEWAYS, help="number of gateways")
    placed.add_argument(
        "--colocated", action="store_true", help="put an encoder on each decoder's card"
    )
    for each in (*imagined, placed):
        each.add_argument(
            "--times", default="h200-pixtral-12b", help="a file of bench/service_times"
        )
    for each in imagined:
        each.add_argument(
            "--output-tokens", type=int, default=100, help="mean number of an answer's tokens"
        )
    for each in scaled:
        each.add_argument("--reuse", type=float, default=0.5, help="share of images seen before")
        for tier, seconds in (("gateway", 30.0), ("encoder", 90.0), ("decoder", 300.0)):
            each.add_argument(
                f"--{tier}-start", type=float, default=seconds, help="seconds until one is ready"
            )
    scaled[0].add_argument("--directory", type=Path, default=ROOT / "docs" / "pictures")
    scaled[1].add_argument("--thresholds", type=float, nargs="+", default=[8, 12, 16, 24, 32, 48])
    planned = imagined[-1]
    planned.add_argument("--rate", type=float, required=True, help="requests a second")
    planned.add_argument("--reuse", type=float, required=True, help="share of repeated images")
    planned.add_argument("--slo", type=float, required=True, help="TTFT p95 in seconds")
    planned.add_argument("--window", type=int, default=1000, help="images that can come again")
    planned.add_argument(
        "--variation",
        type=float,
        default=1.0,
        help="variation of the times between requests: 1 is a Poisson process, 2.2 has bursts",
    )
    planned.add_argument("--price", type=float, default=1.0, help="price of a GPU hour")
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
