"""The stack that is attacked: real processes in the memory that docs/security.md gives them."""

import asyncio
import json
import os
import resource
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psutil

from pixtral_cli import pixtral_stack
from pixtral_cli.stack.process_stack import Addresses
from pixtral_encoder.settings import EncoderSettings
from pixtral_gateway.tenancy.tenants import digest_of
from tests.faults.questions import MODEL_DIR
from tests.hostile.verdict import Answer
from tests.support.redis_server import RedisServer
from tests.support.stack.fleet import Tier

MIB = 1 << 20
START_SECONDS = 240.0
SAMPLE_SECONDS = 0.05
# systemd's default, which a process raises for itself or lives with.
SOFT_FILES = 1024
TIERS = ("gateway", "encoder", "decoder")
# Where the machine would be of use to nobody, what takes too much is ended as a container is.
MOST_MIB = 6144

HAS_DECODE_BYTES = "decode_bytes" in EncoderSettings.model_fields
# What each tier may take, in MiB: docs/security.md adds it up from these settings.
BOUNDS_MIB = {"gateway": 2048, "encoder": 3328, "decoder": 4096}
SETTINGS = {
    "gateway": (f"--max-concurrent-image-bytes={512 * MIB}",),
    "encoder": (
        f"--cache-bytes={64 * MIB}",
        f"--queue-bytes={256 * MIB}",
        *((f"--decode-bytes={1024 * MIB}",) if HAS_DECODE_BYTES else ()),
        "--threads=1",
    ),
    "decoder": (
        f"--cache-bytes={64 * MIB}",
        f"--engine-cache-bytes={64 * MIB}",
        f"--kv-cache-bytes={512 * MIB}",
        "--cpu-threads=1",
    ),
}


def tenants_toml(names: Sequence[str], *, without: str = "") -> str:
    """A file of tenants, each with two keys; `without` is a key that is left out."""
    tables = []
    for name in names:
        keys = [key for key in (key_of(name), second_key_of(name)) if key != without]
        listed = ", ".join(f'"{digest_of(key)}"' for key in keys)
        tables.append(f"[{name}]\nkeys = [{listed}]\n")
    return "\n".join(tables)


def key_of(tenant: str) -> str:
    return f"key-of-{tenant}"


def second_key_of(tenant: str) -> str:
    return f"second-key-of-{tenant}"


class Memory(threading.Thread):
    """Follows the memory of each tier, its children's included. A thread, because an attack may
    keep the event loop busy."""

    def __init__(self, pids: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._over = threading.Event()
        self.peak = dict.fromkeys(pids, 0.0)

    def reset(self) -> None:
        self.peak = dict.fromkeys(self._processes, 0.0)

    def run(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            for name, process in self._processes.items():
                used = _rss(process)
                self.peak[name] = max(self.peak[name], used)
                if used > MOST_MIB:
                    with suppress(psutil.Error):
                        process.kill()

    def stop(self) -> None:
        self._over.set()
        self.join()


def _rss(process: psutil.Process) -> float:
    total = 0
    with suppress(psutil.Error):
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += each.memory_info().rss
    return total / MIB


class Innocent:
    """The process of the innocent tenant, and the answers that it got."""

    def __init__(self, grpc: str, http: str, key: str) -> None:
        self._arguments = (grpc, http, key)
        self._open: dict[tuple[str, int], float] = {}
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.hostile.innocent",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            name = said["kind"], said["number"]
            if "outcome" in said:
                self._open.pop(name, None)
                self.answers.append(
                    Answer(said["kind"], said["began"], said["seconds"], said["outcome"])
                )
            else:
                self._open[name] = said["began"]

    async def until_ended(self, before: float) -> None:
        """Returns once every request that began before has ended; each has a deadline."""
        while any(began < before for began in self._open.values()):
            if self._process.returncode is not None:
                raise RuntimeError("the innocent tenant's process has ended")
            await asyncio.sleep(0.05)

    def during(self, began: float, ended: float) -> list[Answer]:
        """Those that were under way at some time between."""
        return [
            each
            for each in self.answers
            if each.began <= ended and each.began + each.seconds >= began
        ]


class Stack:
    """Redis, encoder, decoder and gateway, from `start` to `stop`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tenants = directory / "tenants.toml"
        self.tenants.write_text(tenants_toml(("eve", "bob")), "utf-8")
        self.left_over: list[str] = []
        self._numbers = 0

    def start(self) -> None:
        self._numbers += 1
        # Short: the path of a socket in it must fit.
        self._temporary = Path(tempfile.mkdtemp(prefix="hostile-"))
        self.redis = RedisServer()
        self.redis.start()
        logs = self.directory / f"logs-{self._numbers}"
        with _soft_files(SOFT_FILES), _temporary(self._temporary):
            self._stack = pixtral_stack(
                MODEL_DIR,
                dtype="f32",
                http_listen="127.0.0.1:0",
                redis_url=self.redis.url,
                encoder_args=SETTINGS["encoder"],
                decoder_args=SETTINGS["decoder"],
                gateway_args=(*SETTINGS["gateway"], f"--api-keys={self.tenants}"),
                log_dir=logs,
                start_timeout=START_SECONDS,
            )
            self._stack.start()
        self._pids = {
            tier: each.pid
            for each in psutil.Process().children(recursive=True)
            for tier in TIERS
            if f"-m pixtral_{tier}" in _command(each)
        }
        self.memory = Memory(self._pids)
        self.memory.start()

    def stop(self) -> None:
        self.memory.stop()
        has_ended = bool(self.ended())
        self._stack.close()
        self.redis.stop()
        # A process that was killed could not clear up.
        if not has_ended:
            self.left_over += [
                path.name
                for path in self._temporary.iterdir()
                # What torch has compiled, for the next start.
                if not path.name.startswith("torchinductor_")
            ]
        shutil.rmtree(self._temporary, ignore_errors=True)

    def ended(self) -> list[str]:
        """Tiers whose process is gone."""
        return [tier for tier, pid in self._pids.items() if not _runs(pid)]

    def threads(self) -> dict[str, int]:
        return {tier: psutil.Process(pid).num_threads() for tier, pid in self._pids.items()}

    @property
    def addresses(self) -> dict[str, Addresses]:
        return self._stack.addresses

    @contextmanager
    def second_gateway(self, *flags: str, tenants: Sequence[str]) -> Iterator[Tier]:
        """Beside the first, for what needs other settings."""
        file = self.directory / "many-tenants.toml"
        file.write_text(tenants_toml(tenants), "utf-8")
        with Tier(
            "pixtral_gateway",
            self.directory,
            "--listen=127.0.0.1:0",
            f"--model-dir={MODEL_DIR}",
            f"--redis-url={self.redis.url}",
            f"--api-keys={file}",
            f"--encoders={self.addresses['encoder'].grpc}",
            f"--decoders={self.addresses['decoder'].grpc}",
            *flags,
        ) as gateway:
            yield gateway


@contextmanager
def _soft_files(most: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def _temporary(directory: Path) -> Iterator[None]:
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
