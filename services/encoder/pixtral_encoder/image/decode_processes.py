"""Decodes images in processes that can be ended. Memory limits how many images run at once."""

import asyncio
import fcntl
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixtral_core.concurrency.unread_errors import read_error
from pixtral_encoder.image.decode_worker import KEPT_BYTES, MAX_REPLY_BYTES, Job, Reply
from pixtral_encoder.image.decoding import Undecodable
from pixtral_encoder.metrics import DECODERS_ENDED_LOST, DECODERS_ENDED_TIMEOUT

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
# If something else killed the process, the image is not at fault. So an image whose process ended
# is decoded once more.
ATTEMPTS = 2
# The limit of an image is in processor time, so other work on the machine does not count. An image
# may take this many times as long by the clock, because it may have to wait for a processor.
CLOCK_FACTOR = 6
LEAST_WAIT_SECONDS = 0.02
# An image that needs more than LARGE_SHARE of the memory is large. ORDINARY_SHARE of the memory is
# only for the other images, so they never wait for the memory of a large image.
LARGE_SHARE = 1 / 8
ORDINARY_SHARE = 1 / 4

_TICKS = os.sysconf("SC_CLK_TCK")

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# The first variable keeps libraries from starting threads that nothing uses. The others are about
# freed memory: the process keeps the memory of an image of usual size for the next image, and
# returns the memory of a large image to the system.
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
}


class DecodeTimeout(Exception):
    """The image was not decoded in time; `cpu_seconds` is the processor time that it took."""

    def __init__(self, cpu_seconds: float) -> None:
        super().__init__(cpu_seconds)
        self.cpu_seconds = cpu_seconds


class ProcessLost(Exception):
    """The process ended before it had decoded the image."""


class NoProcess(Exception):
    """A process that decodes images does not start."""


class DecodeProcesses:
    """Processes that start when they are first needed. A new process replaces one that has ended.

    Large images and ordinary images are two kinds, and each kind has its own part of
    `memory_bytes`. Images of one kind are decoded in the order in which they came. An image waits
    until a process is idle and the part of its kind has enough memory left. If no other image of
    its kind is being decoded, the image does not wait for memory.
    """

    def __init__(self, count: int, *, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        ordinary = int(memory_bytes * ORDINARY_SHARE)
        self._ordinary, self._large = _Room(ordinary), _Room(memory_bytes - ordinary)
        self._idle = [DecodeProcess() for _ in range(count)]
        self._processes = tuple(self._idle)
        # Each process has a thread that waits for it.
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decode")

    async def start(self) -> None:
        """Starts all processes, so that the first images need not wait. Raises NoProcess."""
        in_thread = asyncio.get_running_loop().run_in_executor
        await asyncio.gather(*(in_thread(self._threads, each.start) for each in self._processes))

    async def decode(self, job: Job, data: bytes) -> NDArray[np.float32]:
        """(height, width, 3); see `decoding.decode`.

        If the caller is cancelled, the process continues, and its memory counts until the process
        is done.

        Raises:
            Undecodable, DecodeTimeout, ProcessLost, NoProcess.
        """
        room = self._large if self.is_large(job.memory_bytes) else self._ordinary
        process = await self._process(room, job.memory_bytes)
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._threads, process.decode, job, data)

        def ended(done: "asyncio.Future[NDArray[np.float32]]") -> None:
            self._free(process, room, job.memory_bytes)
            read_error(done)

        running.add_done_callback(ended)
        return await asyncio.shield(running)

    def is_large(self, nbytes: int) -> bool:
        """Whether an image that needs this much memory counts as large."""
        return nbytes > self._memory_bytes * LARGE_SHARE

    def close(self) -> None:
        """Blocks until the running decodes have ended, and ends the processes."""
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.end()

    async def _process(self, room: "_Room", nbytes: int) -> "DecodeProcess":
        granted: asyncio.Future[DecodeProcess] = asyncio.get_running_loop().create_future()
        room.waiting.append((nbytes, granted))
        self._grant()
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._free(granted.result(), room, nbytes)
            elif (nbytes, granted) in room.waiting:
                room.waiting.remove((nbytes, granted))
                self._grant()
            raise

    def _grant(self) -> None:
        for room in (self._ordinary, self._large):
            while self._idle and room.has_room():
                nbytes, granted = room.waiting.popleft()
                if granted.done():
                    # Its caller was cancelled, and has not run since.
                    continue
                room.taken_bytes += nbytes
                granted.set_result(self._idle.pop())

    def _free(self, process: "DecodeProcess", room: "_Room", nbytes: int) -> None:
        room.taken_bytes -= nbytes
        self._idle.append(process)
        self._grant()


class _Room:
    """The memory for images of one kind, and the images of the kind that wait for it."""

    def __init__(self, most_bytes: int) -> None:
        self.taken_bytes = 0
        self.waiting: deque[tuple[int, asyncio.Future[DecodeProcess]]] = deque()
        self._most_bytes = most_bytes

    def has_room(self) -> bool:
        """Whether an image waits, and the first one that waits may be decoded now."""
        if not self.waiting:
            return False
        nbytes, _ = self.waiting[0]
        return not self.taken_bytes or self.taken_bytes + nbytes <= self._most_bytes


@dataclass(slots=True)
class _Running:
    popen: "subprocess.Popen[bytes]"
    socket: socket.socket
    cpu_seconds: float

    def taken(self) -> float:
        """The processor seconds since the last reply, while the process lives."""
        with suppress(OSError, IndexError):
            # The second field is the name in parentheses. The name may contain spaces and
            # parentheses.
            fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / _TICKS - self.cpu_seconds
        return 0.0


class DecodeProcess:
    """One process. All methods block, and one thread at a time may call them."""

    def __init__(self) -> None:
        self._running: _Running | None = None

    def start(self) -> "_Running":
        """Starts the process if it does not run. Raises NoProcess."""
        if self._running is None:
            self._running = _started()
        return self._running

    def decode(self, job: Job, data: bytes) -> NDArray[np.float32]:
        """Decodes an image as `DecodeProcesses.decode` does."""
        for attempt in range(ATTEMPTS):
            try:
                return self._decode(job, data)
            except ProcessLost:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

    def end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            # The process ends when it finds the socket closed.
            running.socket.close()
            try:
                running.popen.wait(1)
            except subprocess.TimeoutExpired:
                running.popen.kill()
                running.popen.wait()

    def _decode(self, job: Job, data: bytes) -> NDArray[np.float32]:
        running = self.start()
        with (
            _memory_file("image", len(data)) as file,
            _memory_file("pixels", job.size.nbytes) as out,
        ):
            os.pwrite(file, data, 0)
            # The seals of the file keep the process from making the mapped file shorter.
            memory = mmap.mmap(out, job.size.nbytes)
            reply = self._asked(running, job, (file, out))
        running.cpu_seconds = reply.cpu_seconds
        if reply.fault:
            logger.warning("an image could not be decoded: %s", reply.fault)
        if reply.reason:
            raise Undecodable(reply.reason)
        return np.frombuffer(memory, np.float32).reshape(job.size.shape)

    def _asked(self, running: _Running, job: Job, files: tuple[int, int]) -> Reply:
        try:
            socket.send_fds(running.socket, [job.to_bytes()], files)
            reply = self._reply(running, job.seconds)
        except TimeoutError:
            taken = self._kill(running)
            DECODERS_ENDED_TIMEOUT.inc()
            raise DecodeTimeout(taken) from None
        except OSError:
            reply = b""
        if reply:
            return Reply.from_bytes(reply)
        taken = self._kill(running)
        DECODERS_ENDED_LOST.inc()
        logger.warning(
            "a process ended with %d after %.1f s of work on an image",
            running.popen.returncode,
            taken,
        )
        raise ProcessLost

    @staticmethod
    def _reply(running: _Running, seconds: float) -> bytes:
        """Raises TimeoutError when the process has used this much processor time for the image."""
        latest = time.monotonic() + CLOCK_FACTOR * seconds
        left = seconds
        while True:
            running.socket.settimeout(left)
            try:
                return running.socket.recv(MAX_REPLY_BYTES)
            except TimeoutError:
                left = min(seconds - running.taken(), latest - time.monotonic())
                if left <= 0:
                    raise
                left = max(left, LEAST_WAIT_SECONDS)

    def _kill(self, running: _Running) -> float:
        """Ends the process, and returns the processor seconds since its last reply."""
        self._running = None
        running.socket.close()
        # Popen's own methods would collect the process without its processor seconds.
        os.kill(running.popen.pid, signal.SIGKILL)
        _, status, used = os.wait4(running.popen.pid, 0)
        running.popen.returncode = os.waitstatus_to_exitcode(status)
        return used.ru_utime + used.ru_stime - running.cpu_seconds


def _started() -> _Running:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # The process must not see the encoder's settings, such as the password of Redis.
    inherited = {name: at for name, at in os.environ.items() if not name.startswith("PIXTRAL_")}
    with theirs:
        popen = subprocess.Popen(  # noqa: S603 - nothing in it is from elsewhere
            [sys.executable, "-m", "pixtral_encoder.image.decode_worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=inherited | _ENVIRONMENT,
        )
    ours.settimeout(START_SECONDS)
    with suppress(OSError):
        if ready := ours.recv(MAX_REPLY_BYTES):
            return _Running(popen, ours, Reply.from_bytes(ready).cpu_seconds)
    ours.close()
    popen.kill()
    popen.wait()
    raise NoProcess


@contextmanager
def _memory_file(name: str, nbytes: int) -> Iterator[int]:
    """A file in memory whose size cannot change."""
    file = os.memfd_create(f"pixtral-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, nbytes)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        yield file
    finally:
        os.close(file)
