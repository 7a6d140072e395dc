"""Hands large image embeddings to the engine's process in memory that both can see.

vLLM sends what it is given through a socket: 8 MB in pieces, each copied twice, into memory that is
new each time. Here the decoder writes them to anonymous files in memory, in a thread, and sends the
files' descriptors; the engine's process maps a file as the tensor's memory, which is gone when both
have let go of it, whichever way they end. vLLM's own `torch_shm` has them in /dev/shm, of which a
container by itself has 64 MiB.
"""

import io
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from services.decoder.memory_files import MemoryFiles, mapped

logger = logging.getLogger(__name__)

# Where the engine's process finds the decoder's; set for the processes that a decoder starts.
ADDRESS = "PIXTRAL_ENGINE_HANDOVER"
# A file costs more than it saves below that.
LEAST_BYTES = 1 << 20
SECONDS = 10.0
NUMBER = "number"


class Handover:
    """The decoder's side: vLLM's encoder of messages asks it for each large tensor.

    All of it, but for `listening`, is for one event loop.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._sent = 0
        self._memory = MemoryFiles()
        # By the address of what is in them, as offered and not sent yet.
        self._files: dict[int, list[io.FileIO]] = {}

    @contextmanager
    def listening(self) -> Iterator[Callable[[Any], None]]:
        """For the engine's process, which is started meanwhile. What is yielded is called once it
        has started, with vLLM's encoder of messages to it; both are blocking."""
        with (
            tempfile.TemporaryDirectory(prefix="pixtral-") as directory,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        ):
            os.environ[ADDRESS] = str(Path(directory) / "engine")
            listener.bind(os.environ[ADDRESS])
            listener.listen(1)
            listener.settimeout(SECONDS)

            def connect(encoder: Any) -> None:
                if encoder.oob_tensor_consumer is not None:
                    return
                try:
                    self._socket, _ = listener.accept()
                except TimeoutError:
                    logger.warning("embeddings go to the engine through vLLM's socket")
                    return
                self._socket.setblocking(False)
                encoder.oob_tensor_consumer = self

            try:
                yield connect
            finally:
                del os.environ[ADDRESS]

    async def offer(self, embeddings: Sequence[torch.Tensor | None]) -> ExitStack:
        """Has copies of the large ones ready for the request that is sent next; closed, those of
        them that were not sent are gone."""
        large = [each for each in embeddings if each is not None and each.nbytes >= LEAST_BYTES]
        offered = ExitStack()
        if self._socket is None or not large:
            return offered
        try:
            files = await self._memory.holding(large)
        except OSError:
            logger.warning("no memory to hand embeddings over in", exc_info=True)
            return offered
        for tensor, file in zip(large, files, strict=True):
            self._files.setdefault(tensor.data_ptr(), []).append(file)
            offered.callback(self._withdraw, tensor.data_ptr(), file)
        return offered

    def new_message(self) -> None:
        """vLLM's encoder begins with another message."""

    def __call__(self, tensor: torch.Tensor) -> dict[str, int] | None:
        """What stands for the tensor in a message; None, and vLLM sends it itself."""
        files = self._files.get(tensor.data_ptr())
        if not files or self._socket is None:
            return None
        number = self._sent + 1
        file = files[0]
        try:
            socket.send_fds(self._socket, [number.to_bytes(8, "little")], [file.fileno()])
        except OSError:
            # The engine's process is far behind, or has ended, which others notice.
            return None
        self._sent = number
        self._withdraw(tensor.data_ptr(), file)
        return {NUMBER: number}

    def close(self) -> None:
        self._memory.close()
        if self._socket is not None:
            self._socket.close()

    def _withdraw(self, address: int, file: io.FileIO) -> None:
        file.close()
        files = self._files.get(address, [])
        if file in files:
            files.remove(file)
        if not files:
            self._files.pop(address, None)


class Receiver:
    """The engine's side: vLLM's decoder of messages asks it for the tensors left out of them."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(SECONDS)
        self._socket.connect(address)

    def __call__(self, dtype: str, shape: Sequence[int], given: dict[str, int]) -> torch.Tensor:
        """The tensor; its memory is the file's."""
        try:
            return self._tensor(given[NUMBER]).view(getattr(torch, dtype)).view(*shape)
        except BaseException:
            # vLLM's thread would end without a word, and every request wait for good.
            logger.exception("an embedding was not handed over")
            os._exit(1)

    def _tensor(self, number: int) -> torch.Tensor:
        for sent, file in self._received():
            try:
                # One whose message was never sent may be before it.
                if sent == number:
                    return mapped(file, os.fstat(file).st_size)
            finally:
                os.close(file)
        raise EOFError

    def _received(self) -> Iterator[tuple[int, int]]:
        while True:
            number, files, _, _ = socket.recv_fds(self._socket, 8, 1, socket.MSG_CMSG_CLOEXEC)
            if not number:
                return
            yield int.from_bytes(number, "little"), files[0]


def receive() -> None:
    """Has this process's vLLM engine receive what a `Handover` sends. Again, it is nothing."""
    from vllm.v1.engine.core import EngineCoreProc

    read_requests = EngineCoreProc.process_input_sockets
    if read_requests.__module__ == __name__:
        return

    def process_input_sockets(self: Any, *args: Any, **kwargs: Any) -> None:
        address = os.environ.get(ADDRESS)
        if address is not None and self.tensor_ipc_receiver is None:
            self.tensor_ipc_receiver = Receiver(address)
        read_requests(self, *args, **kwargs)

    EngineCoreProc.process_input_sockets = process_input_sockets
