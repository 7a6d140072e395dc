"""What is done to the stack, one after the other."""

import random
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tests.faults import redis_faults
from tests.faults.guests import flood, read_slowly
from tests.faults.machine_faults import fill_disk, free_disk
from tests.faults.proxy import Weather
from tests.faults.stack import STALL_SECONDS, Stack

UNAVAILABLE = frozenset({"UNAVAILABLE"})
OVERLOADED = frozenset({"RESOURCE_EXHAUSTED"})
CLOCK_SECONDS = 2 * 3600
TIERS = ("gateway", "encoder", "decoder")


@dataclass(frozen=True, slots=True)
class Ground:
    """What faults are done to, and with what."""

    stack: Stack
    random: random.Random


Step = Callable[[Ground], Awaitable[None]]


async def nothing(ground: Ground) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Fault:
    """`name` is that of the table's row, `of` says which of several it was done to.

    Attributes:
        begin, end: do it, and undo it `hold` seconds later.
        parts: that must have done their work again for it to be over: names of processes, or
            "encoder-redis" for what a tier does with Redis.
        is_kill: the time to recover is counted from its begin.

    The rest is as in `history.Window`.
    """

    name: str
    of: str
    begin: Step
    parts: tuple[str, ...]
    end: Step = nothing
    hold: tuple[float, float] = (0.0, 0.0)
    is_kill: bool = False
    allows: frozenset[str] = field(default=frozenset())
    gateway: int | None = None
    pictures_only: bool = False
    encodes_twice: bool = False


def killed(name: str, tier: str) -> Fault:
    async def begin(ground: Ground) -> None:
        ground.stack.parts[name].kill()

    async def end(ground: Ground) -> None:
        await ground.stack.parts[name].restart()

    is_gateway = tier == "gateway"
    return Fault(
        f"kill -9 of {_a(tier)}",
        name,
        begin,
        (name,),
        end,
        is_kill=True,
        allows=UNAVAILABLE if is_gateway else frozenset(),
        gateway=_number(name) if is_gateway else None,
        encodes_twice=True,
    )


def stopped(name: str, tier: str, hold: tuple[float, float]) -> Fault:
    async def begin(ground: Ground) -> None:
        ground.stack.parts[name].tier_process().send_signal(signal.SIGSTOP)

    async def end(ground: Ground) -> None:
        ground.stack.parts[name].tier_process().send_signal(signal.SIGCONT)

    return Fault(
        f"{_a(tier)} stopped (SIGSTOP)", name, begin, (name,), end, hold, encodes_twice=True
    )


def hung_engine(name: str) -> Fault:
    async def begin(ground: Ground) -> None:
        ground.stack.parts[name].engine().suspend()

    async def end(ground: Ground) -> None:
        ground.stack.parts[name].engine().resume()

    hold = (STALL_SECONDS + 4, STALL_SECONDS + 8)
    return Fault("a decoder's engine hangs", name, begin, (name,), end, hold)


def wrong_clock(name: str, tier: str, ahead: int, word: str) -> Fault:
    async def begin(ground: Ground) -> None:
        ground.stack.clocks[name].set(ahead)

    async def end(ground: Ground) -> None:
        ground.stack.clocks[name].set(0)

    return Fault(f"the clock of {_a(tier)} jumps {word}", name, begin, (name,), end, (4.0, 8.0))


def full_disk(name: str, tier: str) -> Fault:
    async def begin(ground: Ground) -> None:
        fill_disk(ground.stack.parts[name].tier_process())

    async def end(ground: Ground) -> None:
        free_disk(ground.stack.parts[name].tier_process())

    return Fault(f"the disk of {_a(tier)} full", name, begin, (name,), end, (4.0, 8.0))


def on_links(
    name: str,
    links: Iterable[str],
    weather: Weather,
    parts: Sequence[str],
    hold: tuple[float, float],
    *,
    beside: Iterable[str] = (),
    allows: frozenset[str] = frozenset(),
    gateway: int | None = None,
    pictures_only: bool = False,
) -> Fault:
    """`beside` are cut meanwhile."""
    links, beside = tuple(links), tuple(beside)

    async def begin(ground: Ground) -> None:
        for link in beside:
            ground.stack.links[link].change(Weather(is_cut=True))
        for link in links:
            ground.stack.links[link].change(weather)

    async def end(ground: Ground) -> None:
        for link in (*links, *beside):
            ground.stack.links[link].change(Weather())

    return Fault(
        name,
        ", ".join(links),
        begin,
        tuple(parts),
        end,
        hold,
        allows=allows,
        gateway=gateway,
        pictures_only=pictures_only,
        encodes_twice=True,
    )


def of_redis(name: str, begin: redis_faults.Act, end: redis_faults.Act | None = None) -> Fault:
    async def first(ground: Ground) -> None:
        await begin(ground.stack.redis, ground.random)

    async def last(ground: Ground) -> None:
        if end is not None:
            await end(ground.stack.redis, ground.random)

    return Fault(
        f"Redis {name}",
        "redis",
        first,
        ("gateway-redis", "encoder-redis", "decoder-redis"),
        last,
        (0.0, 0.0) if end is None else (4.0, 8.0),
    )


def of_guests(name: str, visit: Callable[[Stack], Awaitable[None]]) -> Fault:
    async def begin(ground: Ground) -> None:
        await visit(ground.stack)

    return Fault(name, "gateway-0", begin, ("gateway-0",), allows=OVERLOADED, gateway=0)


def _weathers(is_redis: bool) -> dict[str, tuple[Weather, tuple[float, float]]]:
    """By their names; how long each lasts."""
    return {
        "slow": (Weather(latency=5.0 if is_redis else 0.4), (5.0, 8.0)),
        "narrow": (Weather(bandwidth=20_000), (5.0, 8.0)),
        "cut": (Weather(is_cut=True), (3.0, 8.0)),
        # Beyond three handshakes that are not answered.
        "half open": (Weather(is_lost=True), (4.0, 8.0) if is_redis else (10.0, 15.0)),
        "reset after 30 kB": (Weather(reset_after=30_000), (5.0, 8.0)),
        "with flipped bits": (Weather(flip_every=20_000), (5.0, 8.0)),
    }


def catalogue(rng: random.Random) -> list[Fault]:
    """Every fault once; which of two processes it hits is drawn."""

    def one(tier: str) -> str:
        return f"{tier}-{rng.randrange(2)}"

    both = ("encoder-0", "encoder-1"), ("decoder-0", "decoder-1")
    gateways = ("gateway-0", "gateway-1")
    faults = [
        *(killed(one(tier), tier) for tier in TIERS),
        stopped(one("gateway"), "gateway", (3.0, 6.0)),
        *(stopped(one(tier), tier, (10.0, 15.0)) for tier in ("encoder", "decoder")),
        hung_engine(one("decoder")),
        *(of_redis(*each) for each in redis_faults.FAULTS),
        *(full_disk(one(tier), tier) for tier in TIERS),
        *(
            # Of the processes that have clocks of their own.
            wrong_clock(f"{tier}-1", tier, ahead, word)
            for tier in TIERS
            for ahead, word in ((CLOCK_SECONDS, "ahead"), (-CLOCK_SECONDS, "back"))
        ),
        of_guests("2,000 streams opened and left", flood),
        of_guests("a client that reads a byte a second", read_slowly),
    ]
    for name, (weather, hold) in _weathers(is_redis=True).items():
        for tier in TIERS:
            link = f"{tier}-redis"
            faults.append(on_links(f"{tier}s to Redis: {name}", [link], weather, [link], hold))
    for name, (weather, hold) in _weathers(is_redis=False).items():
        for tier in ("encoder", "decoder"):
            part = one(tier)
            title = f"gateways to {_a(tier)}: {name}"
            faults.append(on_links(title, [f"gateway-{part}"], weather, [part], hold))
        peers = [f"decoder-{part}" for part in both[0]]
        is_whole = name in ("slow", "narrow")
        faults.append(
            on_links(
                f"decoders to encoders, without Redis: {name}",
                peers,
                weather,
                [*both[1], "decoder-redis"],
                hold,
                beside=["decoder-redis"],
                allows=frozenset() if is_whole else UNAVAILABLE,
                pictures_only=True,
            )
        )
        gateway = one("gateway")
        faults.append(
            on_links(
                f"clients to a gateway: {name}",
                [f"client-{gateway}"],
                weather,
                [gateway],
                hold,
                allows=frozenset() if is_whole else UNAVAILABLE | {"INTERNAL", "UNKNOWN"},
                gateway=_number(gateway),
            )
        )
    for parts, tier in zip(both, ("encoder", "decoder"), strict=True):
        faults.append(
            on_links(
                f"gateways to all {tier}s: cut",
                [f"gateway-{part}" for part in parts],
                Weather(is_cut=True),
                [*parts, *gateways],
                (3.0, 8.0),
                allows=UNAVAILABLE,
                pictures_only=tier == "encoder",
            )
        )
    return faults


def _a(tier: str) -> str:
    return f"an {tier}" if tier == "encoder" else f"a {tier}"


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])
