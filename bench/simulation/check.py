"""The same arrivals to a real stack and to the simulation of one replica a tier."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from bench.pictures import jpeg
from bench.simulation.arrivals import Request, Traffic, constant, trace
from bench.simulation.fleet import Outcome
from bench.simulation.run import Summary, simulate, summary
from bench.simulation.times import ServiceTimes
from pixtral_cli.stack.process_stack import Stack
from pixtral_client import AsyncClient, PixtralError

# Most images are new, so that neither the median nor the 95th percentile lies between those that
# are encoded and those that are not, where a few requests decide which it is.
TRAFFIC = Traffic(reuse=0.25, text_tokens=20, output_tokens=16, same_length=True)


@dataclass(frozen=True, slots=True)
class Compared:
    """`others` is how many cores processes that are no part of this kept busy meanwhile, in the
    simulation too."""

    rate: float
    others: float
    predicted: Summary
    measured: Summary

    def ratios(self) -> dict[str, float]:
        """Predicted by measured."""
        return {
            name: getattr(self.predicted, name) / getattr(self.measured, name)
            for name in ("per_second", "ttft_p50", "ttft_p95")
        }


async def open_loop(stack: Stack, requests: Sequence[Request]) -> list[Outcome]:
    """Sends each request at its time, whatever has become of those before it."""
    salt = time.time_ns()
    pictures = {
        request.image: jpeg((request.image + salt) % 2**31)
        for request in requests
        if request.image is not None
    }
    outcomes = [Outcome(request) for request in requests]
    async with AsyncClient(stack.target, timeout=600, max_retries=0) as client:
        began = time.perf_counter()

        async def send(outcome: Outcome) -> None:
            request = outcome.request
            await asyncio.sleep(max(0.0, began + request.at - time.perf_counter()))
            content: list[Any] = [f"{salt + request.number}: what is this, and what is it for?"]
            if request.image is not None:
                content.insert(0, pictures[request.image])
            try:
                stream = await client.stream(
                    [{"role": "user", "content": content}],
                    max_tokens=request.output_tokens,
                    temperature=0,
                    ignore_eos=True,
                )
                async with stream:
                    async for _ in stream:
                        if outcome.first is None:
                            outcome.first = time.perf_counter() - began - request.at
            except PixtralError:
                outcome.first = None
            else:
                outcome.last = time.perf_counter() - began - request.at

        await asyncio.gather(*(send(outcome) for outcome in outcomes))
    return outcomes


def compare(
    stack: Stack, times: ServiceTimes, rates: Sequence[float], seconds: float, seed: int
) -> list[Compared]:
    compared = []
    for rate in rates:
        requests = list(
            trace(constant(rate), highest=rate, seconds=seconds, traffic=TRAFFIC, seed=seed)
        )
        foreign, began = _foreign_seconds(), time.perf_counter()
        measured = asyncio.run(open_loop(stack, requests))
        others = (_foreign_seconds() - foreign) / (time.perf_counter() - began)
        predicted = simulate(requests, times, taken=max(0.0, others))
        compared.append(
            Compared(rate, others, summary(predicted, seconds), summary(measured, seconds))
        )
    return compared


def _foreign_seconds() -> float:
    """Processor time of the whole machine, less that of this process and its children."""
    own = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            own += sum(process.cpu_times()[:2])
    whole = psutil.cpu_times()
    return float(whole.user + whole.system) - own


def table(compared: Sequence[Compared]) -> str:
    lines = [f"{'':16}{'predicted':>12}{'measured':>12}{'ratio':>8}"]
    for each in compared:
        count = f"{each.measured.requests} requests, other processes on {each.others:.1f} cores"
        lines.append(f"{each.rate:g} requests/s ({count})")
        for name, ratio in each.ratios().items():
            unit, factor = ("/s", 1.0) if name == "per_second" else ("ms", 1e3)
            values = (getattr(part, name) * factor for part in (each.predicted, each.measured))
            cells = "".join(f"{value:>9.1f} {unit}" for value in values)
            lines.append(f"  {name:14}{cells}{ratio:>8.2f}")
    return "\n".join(lines)
