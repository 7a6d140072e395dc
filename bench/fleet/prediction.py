"""The simulation of a fleet under a workload, summed up as a measured turn is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import simpy

from bench.fleet.asking import Writer
from bench.fleet.sides import STICKY, STOCK_SIDES
from bench.load_summary import REFUSED, Record, summary
from bench.loops import gamma
from bench.mix import ANSWER, Album
from bench.simulation.arrivals import Request
from bench.simulation.fleet import Fleet as SimulatedFleet
from bench.simulation.fleet import Outcome
from bench.simulation.plan import UNLIMITED, Topology
from bench.simulation.times import ServiceTimes
from bench.workloads import Prompt, Workload
from pixtral_core.model.vision_spec import VisionSpec

# Answers that vLLM runs at once by itself, on a GPU of 70 GiB or more and on a CPU.
RUNNING_ON_GPU, RUNNING_ON_CPU = 1024, 128
# Tokens of a prompt besides its texts and images, and of a text besides its words and digits.
TEMPLATE_TOKENS = 3
MARKS = 2
BYTES_A_NUMBER = 2


def predict(
    side: str,
    topology: Topology,
    workload: Workload,
    sessions: Sequence[Sequence[Prompt]],
    vision: VisionSpec,
    times: ServiceTimes,
    gateways: int,
) -> dict[str, Any]:
    """The summary of the first turn. Stock vLLM has `topology.decoders` servers."""
    is_stock = side in STOCK_SIDES
    # Where all share the cores of one machine, none has a GPU to share.
    on_gpus = not times.shared_cores
    limits = replace(UNLIMITED, max_running=RUNNING_ON_GPU if on_gpus else RUNNING_ON_CPU)
    env = simpy.Environment()
    fleet = SimulatedFleet(
        env,
        times,
        limits,
        stock=is_stock,
        sticky=side == STICKY,
        colocated=topology.colocated and on_gpus and not is_stock,
    )
    fleet.gateways.begin(gateways)
    fleet.encoders.begin(0 if is_stock else topology.encoders)
    fleet.decoders.begin(topology.decoders)
    numbers = iter(range(sum(map(len, sessions))))
    asked = [list(requests(session, vision, numbers)) for session in sessions]
    if workload.at_once is None:
        due = gamma(workload.rate, workload.variation, 0)
        arrivals = zip(chain.from_iterable(asked), due, strict=False)
        env.process(fleet.replay(replace(one, at=at) for one, at in arrivals))
    else:
        env.process(fleet.converse(asked, workload.at_once))
    env.run()
    return summary([_record(outcome) for outcome in fleet.outcomes], seconds=0.0)


def requests(
    session: Sequence[Prompt], vision: VisionSpec, numbers: Iterator[int]
) -> Iterator[Request]:
    """A session as the simulation has it. Several images of a prompt are one of as many patches."""
    before: tuple[tuple[str, int], ...] = ()
    for prompt in session:
        number = next(numbers)
        text = TEMPLATE_TOKENS + _tokens(prompt.questions[-1])
        # A fixed text stands for the answer before, and the engine has not computed that one.
        text += _tokens(ANSWER) if before else 0
        name = f"turn {number}" if len(session) > 1 else ""
        yield Request(
            at=0.0,
            image=prompt.shown[0][0] if prompt.shown else None,
            patches=sum(_patches(size, vision) for _, size in prompt.shown),
            text_tokens=text,
            output_tokens=prompt.output_tokens,
            number=number,
            before=before,
            becomes=name,
        )
        before = (*before, (name, text))


def kv_tokens(params: Mapping[str, Any], kv_cache_bytes: int) -> int:
    """Tokens whose keys and values have room, by the numbers of a `params.json`."""
    heads = params.get("n_kv_heads") or params["n_heads"]
    numbers = 2 * params["n_layers"] * heads * params["head_dim"]
    return int(kv_cache_bytes // (numbers * BYTES_A_NUMBER))


def first_turn(workload: Workload, is_small: bool) -> list[list[Prompt]]:
    """The sessions of its first turn, whose files are never made."""
    return Writer(is_small).sessions(workload, 0, Album(workload.sizes))


def _patches(size: str, vision: VisionSpec) -> int:
    width, height = map(int, size.split("x"))
    return vision.grid(width, height).tokens


def _tokens(text: str) -> int:
    """About as many as there are: words are short ones, and each digit is one."""
    return len(text.split()) + sum(letter.isdigit() for letter in text) + MARKS


def _record(outcome: Outcome) -> Record:
    request = outcome.request
    return Record(
        due=request.at,
        late=0.0,
        code=REFUSED if outcome.last is None else "OK",
        ended=outcome.last or 0.0,
        first=outcome.first,
        gaps=(),
        tokens=request.output_tokens,
        prompt_tokens=request.prompt_tokens,
        cached_tokens=outcome.cached_tokens,
        images_cached={"none": None, "cached": True, "encoded": False}[outcome.image],
    )
