"""What is done to the stack, one after the other."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from tests.faults import failpoints, redis_faults
from tests.faults.guests import be_hostile, flood, read_slowly, replace_keys
from tests.faults.machine_faults import fill_disk, free_disk
from tests.faults.stack import SPARE, STALL_SECONDS, TIERS, Stack
from tests.support.stack.proxy import Weather

UNAVAILABLE = frozenset({"UNAVAILABLE"})
OVERLOADED = frozenset({"RESOURCE_EXHAUSTED"})
CLOCK_SECONDS = 2 * 3600
TOUCHED = frozenset({*TIERS, "redis"})
# What is named is in Redis, which may be away, or have lost it.
UPLOAD = UNAVAILABLE | {"NOT_FOUND"}
# While an engine, an encoder or a connection says nothing, until it is left out.
HUNG_SECONDS = 60.0
# Redis is waited for by fractions of a second, and then not at all for a while.
REDIS_SECONDS = 10.0
# Of a second; what a starved process has of it.
STARVED, RUNS = 0.18, 0.02


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
    allows_once: frozenset[str] = frozenset()
    allows_uploads: frozenset[str] = frozenset()
    allows_images: frozenset[str] = frozenset()
    most_seconds: float = 30.0

    @property
    def is_of_all(self) -> bool:
        """Whether it leaves nothing of a tier, or a gateway's way to it."""
        return self.allows >= UNAVAILABLE

    @property
    def touches(self) -> frozenset[str]:
        """Tiers, and Redis."""
        return frozenset(word for part in self.parts for word in part.split("-")) & TOUCHED


def _ended(
    what: str,
    name: str,
    tier: str,
    begin: Callable[[Ground], Awaitable[None]],
    end: Callable[[Ground], Awaitable[None]] | None = None,
) -> Fault:
    """A process ends, however, and is started anew."""

    async def restart(ground: Ground) -> None:
        await ground.stack.parts[name].restart()

    is_gateway = tier == "gateway"
    return Fault(
        what,
        name,
        begin,
        (name,),
        end or restart,
        is_kill=True,
        allows=UNAVAILABLE if is_gateway else frozenset(),
        gateway=_number(name) if is_gateway else None,
        encodes_twice=True,
        allows_once=UNAVAILABLE if tier == "decoder" else frozenset(),
    )


def killed(name: str, tier: str) -> Fault:
    async def begin(ground: Ground) -> None:
        ground.stack.parts[name].kill()

    return _ended(f"kill -9 of {_a(tier)}", name, tier, begin)


def killed_again(name: str, tier: str) -> Fault:
    async def begin(ground: Ground) -> None:
        ground.stack.parts[name].kill()

    async def end(ground: Ground) -> None:
        # It is bound, and loads.
        await ground.stack.parts[name].restart()
        ground.stack.parts[name].kill()
        await ground.stack.parts[name].restart()

    return _ended(f"kill -9 of {_a(tier)}, and again as it starts", name, tier, begin, end)


def killed_at_its_moment(name: str, tier: str) -> Fault:
    async def begin(ground: Ground) -> None:
        failpoints.path_of(ground.stack.directory, name).touch()
        # The users' requests bring it there.
        await ground.stack.parts[name].until_ended()

    return _ended(f"{_a(tier)} dies {failpoints.MOMENTS[tier]}", name, tier, begin)


def terminated(name: str, tier: str) -> Fault:
    async def begin(ground: Ground) -> None:
        await ground.stack.parts[name].terminate()

    return _ended(f"SIGTERM to {_a(tier)}", name, tier, begin)


def renewed(name: str) -> Fault:
    async def begin(ground: Ground) -> None:
        ground.stack.renew_certificates()
        await ground.stack.parts[name].terminate()

    tier = name.partition("-")[0]
    return _ended(f"{_a(tier)} starts anew with other certificates", name, tier, begin)


def killed_engine(name: str) -> Fault:
    async def begin(ground: Ground) -> None:
        part = ground.stack.parts[name]
        part.engine().kill()
        # It says so, and ends itself.
        await part.until_ended()

    return _ended("kill -9 of a decoder's engine alone", name, "decoder", begin)


def stopped(name: str, tier: str, hold: tuple[float, float]) -> Fault:
    async def begin(ground: Ground) -> None:
        ground.stack.parts[name].tier_process().send_signal(signal.SIGSTOP)

    async def end(ground: Ground) -> None:
        ground.stack.parts[name].tier_process().send_signal(signal.SIGCONT)

    return Fault(
        f"{_a(tier)} stopped (SIGSTOP)",
        name,
        begin,
        (name,),
        end,
        hold,
        encodes_twice=True,
        allows_once=UNAVAILABLE,
        most_seconds=HUNG_SECONDS,
    )


def starved(name: str, tier: str) -> Fault:
    """It and its children have a tenth of a processor."""
    tasks: list[asyncio.Task[None]] = []

    async def starve(processes: Sequence[psutil.Process]) -> None:
        try:
            while True:
                for word, seconds in ((signal.SIGSTOP, STARVED), (signal.SIGCONT, RUNS)):
                    _signal(processes, word)
                    await asyncio.sleep(seconds)
        finally:
            _signal(processes, signal.SIGCONT)

    async def begin(ground: Ground) -> None:
        tasks.append(asyncio.create_task(starve(ground.stack.parts[name].processes())))

    async def end(ground: Ground) -> None:
        task = tasks.pop()
        task.cancel()
        await asyncio.wait((task,))

    return Fault(
        f"{_a(tier)} with a tenth of a processor",
        name,
        begin,
        (name,),
        end,
        (6.0, 10.0),
        encodes_twice=True,
        allows_once=UNAVAILABLE,
        most_seconds=HUNG_SECONDS,
    )


def _signal(processes: Iterable[psutil.Process], word: signal.Signals) -> None:
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.send_signal(word)


def joined(what: str, *flags: str) -> Fault:
    """One more encoder comes, and leaves with SIGTERM."""

    async def begin(ground: Ground) -> None:
        await ground.stack.start_spare(*flags)

    async def end(ground: Ground) -> None:
        assert ground.stack.spare is not None
        await ground.stack.spare.terminate()

    return Fault(
        what, SPARE, begin, ("encoder-0", "encoder-1"), end, (10.0, 14.0), encodes_twice=True
    )


def hung_engine(name: str) -> Fault:
    async def begin(ground: Ground) -> None:
        ground.stack.parts[name].engine().suspend()

    async def end(ground: Ground) -> None:
        ground.stack.parts[name].engine().resume()

    hold = (STALL_SECONDS + 4, STALL_SECONDS + 8)
    return Fault(
        "a decoder's engine hangs",
        name,
        begin,
        (name,),
        end,
        hold,
        allows_once=UNAVAILABLE,
        most_seconds=HUNG_SECONDS,
    )


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
    allows_once: frozenset[str] = frozenset(),
    allows_uploads: frozenset[str] = frozenset(),
    most_seconds: float = HUNG_SECONDS,
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
        allows_once=allows_once,
        allows_uploads=allows_uploads,
        most_seconds=most_seconds,
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
        allows_uploads=UPLOAD,
        most_seconds=REDIS_SECONDS,
    )


def of_guests(
    name: str, visit: Callable[[Stack], Awaitable[None]], allows: frozenset[str] = OVERLOADED
) -> Fault:
    async def begin(ground: Ground) -> None:
        await visit(ground.stack)

    return Fault(name, "gateway-0", begin, ("gateway-0",), allows=allows, gateway=0)


def _weathers(is_redis: bool) -> dict[str, tuple[Weather, tuple[float, float]]]:
    """By their names; how long each lasts."""
    return {
        "slow": (Weather(latency=5.0 if is_redis else 0.4), (5.0, 8.0)),
        "narrow": (Weather(bandwidth=20_000), (5.0, 8.0)),
        "cut": (Weather(is_cut=True), (3.0, 8.0)),
        # Beyond three handshakes that are not answered.
        "half open": (Weather(is_lost=True), (4.0, 8.0) if is_redis else (10.0, 15.0)),
        **(
            {}
            if is_redis
            else {
                "lost on the way there": (Weather(lost_way="there"), (10.0, 15.0)),
                "lost on the way back": (Weather(lost_way="back"), (10.0, 15.0)),
            }
        ),
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
        *(terminated(one(tier), tier) for tier in TIERS),
        *(killed_at_its_moment(one(tier), tier) for tier in TIERS),
        *(starved(one(tier), tier) for tier in TIERS),
        killed_again(one("encoder"), "encoder"),
        killed_again(one("decoder"), "decoder"),
        killed_engine(one("decoder")),
        renewed(one("gateway")),
        renewed(one("encoder")),
        joined("one more encoder joins and leaves"),
        joined("an encoder of another version joins and leaves", "--dtype=bf16"),
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
        of_guests("a hostile tenant", be_hostile, frozenset()),
        of_guests("keys are replaced", replace_keys, frozenset()),
    ]
    for name, (weather, hold) in _weathers(is_redis=True).items():
        for tier in TIERS:
            link = f"{tier}-redis"
            faults.append(
                on_links(
                    f"{tier}s to Redis: {name}",
                    [link],
                    weather,
                    [link],
                    hold,
                    allows_uploads=UPLOAD,
                    most_seconds=REDIS_SECONDS,
                )
            )
    for name, (weather, hold) in _weathers(is_redis=False).items():
        for tier in ("encoder", "decoder"):
            part = one(tier)
            title = f"gateways to {_a(tier)}: {name}"
            once = UNAVAILABLE if tier == "decoder" else frozenset()
            link = f"gateway-{part}"
            faults.append(on_links(title, [link], weather, [part], hold, allows_once=once))
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
                allows_uploads=UPLOAD,
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
