"""A process that decodes images one after the other while its encoder lives.

    python -m pixtral_encoder.image.decode_worker SOCKET

`decode_processes` starts and ends this process. If an image library has a fault, or an image takes
too much memory or time, only this process is harmed. The process also limits its own memory and
processor time.
"""

import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from PIL import AvifImagePlugin

from pixtral_core.image.formats import ImageFormat
from pixtral_core.image.header import ImageHeader
from pixtral_encoder.image.decoding import TargetSize, Undecodable, decode

MAX_REPLY_BYTES = 4096
# The freed memory that the C library keeps for the next image.
KEPT_BYTES = 64 << 20
_FORMATS = tuple(ImageFormat)
# Seconds that the system's limit on processor time exceeds the limit of the image; the system
# counts whole seconds. Normally the encoder ends the process sooner. The system's limit is for a
# process whose encoder has gone.
_SPARE_CPU_SECONDS = 2

# The exceptions that decoders raise on bad data. An exception of another type may be a fault of
# this code.
BAD_DATA = (EOFError, OSError, SyntaxError, ValueError, struct.error, cv2.error)


@dataclass(frozen=True, slots=True)
class Job:
    """One image to decode. `memory_bytes` comes in addition to the memory of the process itself."""

    header: ImageHeader
    size: TargetSize
    memory_bytes: int
    seconds: float

    _LAYOUT: ClassVar = struct.Struct("<BBIIIIQd")

    def to_bytes(self) -> bytes:
        header, size = self.header, self.size
        return self._LAYOUT.pack(
            _FORMATS.index(header.format),
            header.orientation,
            header.width,
            header.height,
            size.width,
            size.height,
            self.memory_bytes,
            self.seconds,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Job":
        form, turn, width, height, to_width, to_height, memory_bytes, seconds = cls._LAYOUT.unpack(
            data
        )
        header = ImageHeader(_FORMATS[form], width, height, turn)
        return cls(header, TargetSize(to_width, to_height), memory_bytes, seconds)


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of a job.

    Attributes:
        cpu_seconds: CPU time of the process since its start.
        reason: why the image cannot be decoded, as in `Undecodable`; empty if it was decoded.
        fault: type and traceback of an exception that may come from a fault of this code; empty
            if there was none.
    """

    cpu_seconds: float
    reason: str = ""
    fault: str = ""

    _LAYOUT: ClassVar = struct.Struct("<d")

    def to_bytes(self) -> bytes:
        texts = f"{self.reason}\n{self.fault}".encode("utf-8", "replace")
        return (self._LAYOUT.pack(self.cpu_seconds) + texts)[:MAX_REPLY_BYTES]

    @classmethod
    def from_bytes(cls, data: bytes) -> "Reply":
        (cpu_seconds,) = cls._LAYOUT.unpack_from(data)
        reason, _, fault = data[cls._LAYOUT.size :].decode("utf-8", "replace").partition("\n")
        return cls(cpu_seconds, reason, fault)


def main() -> None:
    # After such a signal, the encoder still finishes its requests and needs this process. It closes
    # the socket when it ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # A core dump would contain the image.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Pillow warns about each unusual detail of a file with a new text, and Python keeps every text
    # in memory.
    warnings.filterwarnings("ignore")
    _silence_libraries()
    cv2.setNumThreads(1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    # A ConnectionError means that the encoder has gone, so nothing can receive a reply.
    with suppress(ConnectionError), socket.socket(fileno=int(sys.argv[1])) as encoder:
        _serve(encoder, _address_space_bytes())


def _silence_libraries() -> None:
    """Keeps libraries such as libtiff from writing to stderr, while Python still writes there.

    libtiff reports every unusual detail of a file on stderr.
    """
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _serve(encoder: socket.socket, own_bytes: int) -> None:
    # The first reply reports that the process is ready. Its time is that of the start, so that no
    # image is charged for it.
    encoder.send(Reply(time.process_time()).to_bytes())
    while True:
        message, descriptors, _, _ = socket.recv_fds(encoder, MAX_REPLY_BYTES, 2)
        if not message:
            return
        file, output = descriptors
        try:
            reply = _done(Job.from_bytes(message), file, output, own_bytes)
        finally:
            os.close(file)
            os.close(output)
        encoder.send(reply.to_bytes())


def _done(job: Job, file: int, output: int, own_bytes: int) -> Reply:
    _limit(resource.RLIMIT_AS, own_bytes + KEPT_BYTES + job.memory_bytes)
    _limit(resource.RLIMIT_CPU, int(time.process_time() + job.seconds) + _SPARE_CPU_SECONDS)
    reason, fault = "", ""
    try:
        _decode(job, file, output)
    except Undecodable as error:
        reason = error.reason
    except MemoryError:
        reason = "IMAGE_TOO_COMPLEX"
    except Exception as error:
        reason = "IMAGE_MALFORMED"
        if not isinstance(error, BAD_DATA):
            where = "".join(traceback.format_tb(error.__traceback__))
            fault = f"{type(error).__name__}\n{where}"
    return Reply(time.process_time(), reason, fault)


def _decode(job: Job, file: int, output: int) -> None:
    with open(file, "rb", closefd=False) as reader:
        data = reader.read()
    # The memory is unmapped when the array is deleted.
    memory = mmap.mmap(output, job.size.nbytes)
    decode(data, job.header, job.size, np.frombuffer(memory, np.float32).reshape(job.size.shape))


def _limit(which: int, amount: int) -> None:
    _, most = resource.getrlimit(which)
    is_lower = most != resource.RLIM_INFINITY and most < amount
    resource.setrlimit(which, (most if is_lower else amount, most))


def _address_space_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


if __name__ == "__main__":
    main()
