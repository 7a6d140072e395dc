"""The whole service on loopback, two of each tier, with a proxy on every way between them."""

import asyncio
import json
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.error import URLError

import psutil

from pixtral_client import Tls
from pixtral_gateway.tenancy.tenants import digest_of
from tests.faults import failpoints, mutated
from tests.faults.machine_faults import Clock
from tests.faults.questions import MODEL_DIR
from tests.support.certificate_authority import Authority
from tests.support.redis_server import RedisServer
from tests.support.stack.fleet import Tier
from tests.support.stack.proxy import Link, Proxy

GATEWAYS, ENCODERS, DECODERS = 2, 2, 2
TENANTS = ("ann", "bob", "cat")
# Is hostile, and no user.
HOSTILE = "eve"
SPARE = "encoder-spare"
PASSWORD = "of-the-cache"  # noqa: S105
START_SECONDS = 240.0
# A drain, and what it takes to end what is left, with time to spare.
END_SECONDS = 60.0
# The product's 30 s, shortened: so long must an engine be silent to be left out.
STALL_SECONDS = 10.0
MAX_CONCURRENT = 96
MIB = 1 << 20

TIERS = ("gateway", "encoder", "decoder")


def key_of(tenant: str) -> str:
    return f"key-of-{tenant}"


def next_key_of(tenant: str) -> str:
    """What replaces it for a while."""
    return f"next-key-of-{tenant}"


def tier_of(name: str) -> str:
    return name.partition("-")[0]


@dataclass(slots=True)
class Part:
    """A process, by the name that it keeps when it is started anew: "decoder-0"."""

    name: str
    start: Callable[[], Tier]
    proxies: Mapping[str, Proxy] = field(default_factory=dict)
    tier: Tier | None = None

    @property
    def pid(self) -> int:
        assert self.tier is not None
        return self.tier.process.pid

    def tier_process(self) -> psutil.Process:
        return psutil.Process(self.pid)

    @property
    def is_running(self) -> bool:
        return self.tier is not None and self.tier.process.poll() is None

    def value(self, sample: str, **labels: str) -> float:
        assert self.tier is not None
        return self.tier.value(sample, **labels)

    def processes(self) -> list[psutil.Process]:
        """Itself and its children."""
        own = psutil.Process(self.pid)
        return [own, *own.children(recursive=True)]

    def engine(self) -> psutil.Process:
        """vLLM's, of a decoder."""
        (engine,) = [each for each in self.processes() if "EngineCore" in _command(each)]
        return engine

    async def restart(self) -> None:
        """Kills what there may be of it, and starts it; it is bound when this returns."""
        self.kill()
        self.tier = self.start()
        self.tier.__enter__()
        async with asyncio.timeout(START_SECONDS):
            while True:
                with suppress(FileNotFoundError):
                    self._told(self.tier)
                    return
                if not self.is_running:
                    raise RuntimeError(f"{self.name} has ended:\n{self.log()[-3000:]}")
                await asyncio.sleep(0.05)

    async def terminate(self) -> None:
        """SIGTERM, to the end of its drain. Raises TimeoutError."""
        assert self.tier is not None
        self.tier.process.terminate()
        await self.until_ended()

    async def until_ended(self) -> None:
        async with asyncio.timeout(END_SECONDS):
            while self.is_running:
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        """As kill -9 does, and what its death takes with it."""
        if self.tier is not None:
            self.tier.__exit__()

    def log(self) -> str:
        assert self.tier is not None
        return self.tier._log.read_text("utf-8", "replace")

    def _told(self, tier: Tier) -> None:
        for kind, proxy in self.proxies.items():
            proxy.target = tier.target if kind == "grpc" else tier.http_target


class Stack:
    """Processes, links and the Redis between them.

    Attributes:
        links: by their two ends: "gateway-decoder-0", "decoder-redis", "client-gateway-1". A
            decoder comes to an encoder by the same port as a gateway, and by a link of its own.
        tls, peer_tls: for a client of the gateways, and of the other tiers.
        tenants: their names; `key_of` has their keys.
        mutations: of processes by their names, from their next start on: see `mutated`.
        clocks: of the last process of each tier, by its name; the others have the machine's.
        spare: an encoder that every gateway knows of and that runs only while a fault has it so.
        temporary: where its processes make their temporary files.
    """

    def __init__(self, directory: Path, redis: RedisServer) -> None:
        self.directory = directory
        self.redis = redis
        self.links: dict[str, Link] = {}
        self.parts: dict[str, Part] = {}
        self.tenants = TENANTS
        self.mutations: dict[str, str] = {}
        self.clocks: dict[str, Clock] = {}
        self.temporary = Path()
        self.spare: Part | None = None
        self._spare_flags: tuple[str, ...] = ()
        self._authority = authority = Authority(directory, "authority")
        certificate, private_key = authority.issue("tier")
        self.tls = Tls(ca=authority.ca)
        self.peer_tls = Tls(authority.ca, certificate, private_key)
        self.ssl = ssl.create_default_context(cafile=str(authority.ca))
        self._own = (f"--tls-certificate={certificate}", f"--tls-private-key={private_key}")
        self._mutual = (*self._own, f"--tls-client-ca={authority.ca}")
        self._peer = (
            f"--peer-tls-ca={authority.ca}",
            f"--peer-tls-certificate={certificate}",
            f"--peer-tls-private-key={private_key}",
        )
        self._proxies: dict[str, Proxy] = {}

    def renew_certificates(self) -> None:
        """In the files that processes read when they start."""
        self._authority.issue("tier")

    def write_tenants(self, keys: Callable[[str], Sequence[str]]) -> None:
        """The file that the gateways look at, with these keys of each tenant; at once."""
        path = self.directory / "tenants.toml"
        written = path.with_suffix(".new")
        tables = [
            f"[{name}]\nkeys = {json.dumps([digest_of(key) for key in keys(name)])}\n"
            for name in (*self.tenants, HOSTILE)
        ]
        written.write_text("".join(tables), "utf-8")
        written.replace(path)

    async def start_spare(self, *flags: str) -> None:
        """Runs the spare encoder with these flags besides its tier's."""
        self._spare_flags = flags
        self.spare = Part(SPARE, partial(self._tier, SPARE), {"grpc": self._proxies[SPARE]})
        await self.spare.restart()

    def link(self, name: str) -> Link:
        return self.links.setdefault(name, Link(name))

    def of(self, tier: str) -> list[Part]:
        return [part for part in self.parts.values() if tier_of(part.name) == tier]

    def address(self, name: str) -> str:
        """host:port of a proxy: "gateway-0", "gateway-0-http", "encoder-1"."""
        return self._proxies[name].address

    def is_ready(self) -> bool:
        """Whether every process runs, and every gateway makes calls to all of the others."""
        if not all(part.is_running for part in self.parts.values()):
            return False
        with suppress(URLError, OSError):
            return all(
                seen == len(self.of(tier))
                for tier in ("encoder", "decoder")
                for seen in self._seen(tier)
            )
        return False

    def is_missed(self, name: str) -> bool:
        """Whether every gateway makes calls to fewer of its tier than there are."""
        tier = tier_of(name)
        return all(seen < len(self.of(tier)) for seen in self._seen(tier))

    def _seen(self, tier: str) -> list[float]:
        """How many of that tier each gateway makes calls to."""
        ready = "pixtral_gateway_replicas_ready"
        return [gateway.value(ready, tier=tier) for gateway in self.of("gateway")]

    @asynccontextmanager
    async def running(
        self, counts: Sequence[int] = (GATEWAYS, ENCODERS, DECODERS)
    ) -> AsyncIterator[None]:
        """`counts` are of gateways, encoders and decoders."""
        self.write_tenants(lambda tenant: [key_of(tenant)])
        # Short: the path of a socket in it must fit.
        self.temporary = Path(tempfile.mkdtemp(prefix="faults-"))
        names = [
            f"{tier}-{number}"
            for tier, count in zip(TIERS, counts, strict=True)
            for number in range(count)
        ]
        proxies = {f"{tier}-redis": Proxy(self.link(f"{tier}-redis")) for tier in TIERS}
        for name in names:
            proxies[name] = Proxy(self._way_to(name))
            if tier_of(name) == "gateway":
                proxies[f"{name}-http"] = Proxy(self.link(f"client-{name}"))
        proxies[SPARE] = Proxy(self._way_to(SPARE))
        self._proxies = proxies
        self.clocks = {
            name: Clock(self.directory / f"{name}.clock")
            for name in (f"{tier}-{count - 1}" for tier, count in zip(TIERS, counts, strict=True))
        }
        try:
            for proxy in proxies.values():
                await proxy.__aenter__()
            for tier in TIERS:
                proxies[f"{tier}-redis"].target = f"127.0.0.1:{self.redis.port}"
            for name in names:
                self.parts[name] = Part(
                    name,
                    partial(self._tier, name),
                    {"grpc": proxies[name]}
                    | ({"http": proxies[f"{name}-http"]} if f"{name}-http" in proxies else {}),
                )
            await asyncio.gather(*(part.restart() for part in self.parts.values()))
            await self.until_ready()
            yield
        finally:
            for part in (*self.parts.values(), *([self.spare] if self.spare else [])):
                part.kill()
            shutil.rmtree(self.temporary, ignore_errors=True)
            for proxy in proxies.values():
                await proxy.__aexit__()

    async def until_ready(self, seconds: float = START_SECONDS) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not await asyncio.to_thread(self.is_ready):
                for part in self.parts.values():
                    if not part.is_running:
                        raise RuntimeError(f"{part.name} has ended:\n{part.log()[-3000:]}")
                await asyncio.sleep(0.25)

    def _way_to(self, name: str) -> Link | Callable[[int], Awaitable[Link]]:
        if tier_of(name) == "gateway":
            return self.link(f"client-{name}")
        if tier_of(name) == "decoder":
            return self.link(f"gateway-{name}")
        links = {tier: self.link(f"{tier}-{name}") for tier in ("gateway", "decoder")}

        async def by_caller(port: int) -> Link:
            pids = [part.pid for part in self.of("decoder") if part.is_running]
            is_decoder = await asyncio.to_thread(_is_any_of, pids, port)
            return links["decoder" if is_decoder else "gateway"]

        return by_caller

    def _tier(self, name: str) -> Tier:
        tier = tier_of(name)
        environment = {
            mutated.TIER: tier,
            mutated.MUTATION: self.mutations.get(name, ""),
            failpoints.FILE: str(failpoints.path_of(self.directory, name)),
        }
        if name in self.clocks:
            environment |= self.clocks[name].environment
        shared = (f"--model-dir={MODEL_DIR}", "--listen=127.0.0.1:0")
        url = self.redis.url_at(self._proxies[f"{tier}-redis"].address)
        return Tier(
            mutated.__name__,
            self.directory,
            *shared,
            *getattr(self, f"_{tier}_flags")(),
            *(self._spare_flags if name == SPARE else ()),
            drain_seconds=5,
            file_name=name,
            PIXTRAL_REDIS_URL=url,
            OMP_NUM_THREADS="1",
            TMPDIR=str(self.temporary),
            **environment,
        )

    def _gateway_flags(self) -> list[str]:
        def those(tier: str) -> str:
            names = [name for name in (*self.parts, SPARE) if tier_of(name) == tier]
            return ",".join(self.address(name) for name in names)

        return [
            *self._own,
            *self._peer,
            "--http-listen=127.0.0.1:0",
            f"--api-keys={self.directory / 'tenants.toml'}",
            f"--encoders={those('encoder')}",
            f"--decoders={those('decoder')}",
            f"--stall-seconds={STALL_SECONDS}",
            f"--max-concurrent-requests={MAX_CONCURRENT}",
        ]

    def _encoder_flags(self) -> list[str]:
        return [*self._mutual, "--dtype=f32", "--threads=1", "--decode-processes=1"]

    def _decoder_flags(self) -> list[str]:
        return [
            *self._mutual,
            *self._peer,
            "--dtype=f32",
            "--cpu-threads=1",
            f"--kv-cache-bytes={128 * MIB}",
            f"--cache-bytes={64 * MIB}",
            f"--engine-cache-bytes={64 * MIB}",
        ]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _is_any_of(pids: Sequence[int], port: int) -> bool:
    """Whether one of these processes has a connection from the port."""
    for pid in pids:
        with suppress(psutil.Error):
            found = psutil.Process(pid).net_connections("tcp4")
            if any(each.laddr and each.laddr.port == port for each in found):
                return True
    return False
