"""Sends the same arrivals to a real stack and to a simulation with one replica of each tier."""

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

# Most images are new. So the median and the 95th percentile both fall among encoded images, and a
# few requests do not decide whether they do.
TRAFFIC = Traffic(reuse=0.25, text_tokens=20, output_tokens=16, same_length=True)


@dataclass(frozen=True, slots=True)
class Compared:
    """One rate, predicted and measured.

    Attributes:
        rate: requests a second.
        others: cores that foreign processes kept busy; the simulation has them too.
        predicted: figures of the simulation.
        measured: figures of the real stack.
    """

    rate: float
    others: float
    predicted: Summary
    measured: Summary

    def ratios(self) -> dict[str, float]:
        """Predicted values divided by measured ones."""
        return {
            name: getattr(self.predicted, name) / getattr(self.measured, name)
            for name in ("per_second", "ttft_p50", "ttft_p95")
        }


async def open_loop(stack: Stack, requests: Sequence[Request]) -> list[Outcome]:
    """Sends each request at its time, whether or not earlier ones have ended."""
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
    """CPU time of the whole machine, less that of this process and its children."""
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
