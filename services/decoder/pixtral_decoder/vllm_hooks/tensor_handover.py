"""Passes large image embeddings to the engine's process in shared memory.

Library: vLLM
Changes: the frontend's message encoder and the engine's message decoder pass a large embedding as a
    file descriptor, through vLLM's own interface for tensors out of band.
    The hook sets the engine's receiver in EngineCoreProc.process_input_sockets, because vLLM has
    no setting for it.
Why: vLLM sends a tensor through a socket. For an embedding of 8 MB this means many pieces, two
    copies of each, and new memory. The decoder receives embeddings in anonymous files in memory,
    and the engine's process maps the same file. The system frees a file when both processes have
    closed it or ended. vLLM's own `torch_shm` puts tensors into /dev/shm, of which a container has
    only 64 MiB by default.
Upstream: https://github.com/vllm-project/vllm/pull/32104 (the interface, and torch_shm)
Versions: vLLM 0.25.1 to 0.33.0
"""

import logging
import math
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pixtral_core.hooks import Touch, check_touches
from pixtral_decoder.embeddings.image_embedding import ImageEmbedding
from pixtral_decoder.embeddings.memory_files import MemoryFile, mapped

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core import EngineCoreProc

logger = logging.getLogger(__name__)

_SERIAL = "vllm.v1.serial_utils"
_CORE = "vllm.v1.engine.core"
TOUCHES = (
    Touch("vllm.v1.engine.core_client", "MPClient.__init__", mentions=("encoder",)),
    Touch(_SERIAL, "MsgpackEncoder.__init__", mentions=("oob_tensor_consumer",)),
    Touch(_SERIAL, "MsgpackEncoder.encode", mentions=("oob_tensor_consumer", "new_message")),
    Touch(_SERIAL, "MsgpackDecoder.__init__", parameters=("oob_tensor_provider",)),
    Touch(_SERIAL, "OOBTensorConsumer.new_message"),
    Touch(_SERIAL, "OOBTensorConsumer.__call__", parameters=("tensor",)),
    Touch(_CORE, "EngineCoreProc.__init__", mentions=("tensor_ipc_receiver",)),
    Touch(_CORE, "EngineCoreProc.process_input_sockets", mentions=("tensor_ipc_receiver",)),
)

# This environment variable has the address of the decoder's socket, for the engine's process.
ADDRESS = "PIXTRAL_ENGINE_HANDOVER"
SECONDS = 10.0
# The keys of a reference to a tensor in a message: the number of the file, and the offset of the
# tensor in the file.
NUMBER = "number"
OFFSET = "offset"


class MessageEncoder(Protocol):
    """The part of vLLM's MsgpackEncoder that this hook touches."""

    oob_tensor_consumer: Any


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


def encoder_of(llm: "AsyncLLM") -> MessageEncoder:
    """The encoder of the messages to one engine's process."""
    # Only a client whose engine has a process of its own has this attribute.
    core: Any = llm.engine_core
    encoder: MessageEncoder = core.encoder
    return encoder


class Handover:
    """The decoder's side of the handover. vLLM's message encoder calls it for each large tensor.

    Only one event loop may call the methods, except `listening`.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._sent = 0
        # The files of the offered tensors, by the address of the tensor in memory. Each request
        # that offers a tensor adds an entry.
        self._offered: dict[int, list[MemoryFile]] = {}

    @contextmanager
    def listening(self) -> Iterator[Callable[[MessageEncoder], None]]:
        """Listens for the engine's process, which must start during the block.

        Yields a function. Call it with vLLM's message encoder when the engine has started. The
        function and this method block.
        """
        with (
            tempfile.TemporaryDirectory(prefix="pixtral-") as directory,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        ):
            os.environ[ADDRESS] = str(Path(directory) / "engine")
            listener.bind(os.environ[ADDRESS])
            listener.listen(1)
            listener.settimeout(SECONDS)

            def connect(encoder: MessageEncoder) -> None:
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

    @contextmanager
    def offering(self, embeddings: Sequence[ImageEmbedding | None]) -> Iterator[None]:
        """During the block, vLLM's message encoder passes the files of embeddings that have one.

        The block must include the sending of the request with these embeddings.
        """
        with ExitStack() as offered:
            for embedding in embeddings:
                if embedding is not None and embedding.file is not None:
                    address = embedding.tensor.data_ptr()
                    self._offered.setdefault(address, []).append(embedding.file)
                    offered.callback(self._withdraw, address)
            yield

    def new_message(self) -> None:
        """vLLM calls this when its encoder begins another message."""

    def __call__(self, tensor: torch.Tensor) -> dict[str, int] | None:
        """The reference to the tensor, for a message; None if vLLM must send the tensor itself."""
        address = tensor.data_ptr()
        if address not in self._offered or self._socket is None:
            return None
        file, number = self._offered[address][0], self._sent + 1
        try:
            socket.send_fds(self._socket, [number.to_bytes(8, "little")], [file.descriptor])
        except OSError:
            # The socket's buffer is full because the engine's process is slow, or that process has
            # ended, which other code notices.
            return None
        self._sent = number
        return {NUMBER: number, OFFSET: address - file.memory.data_ptr()}

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _withdraw(self, address: int) -> None:
        self._offered[address].pop()
        if not self._offered[address]:
            del self._offered[address]


class Receiver:
    """The engine's side of the handover.

    vLLM's message decoder calls it for each tensor to which a message has a reference.
    """

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(SECONDS)
        self._socket.connect(address)

    def __call__(self, dtype: str, shape: Sequence[int], given: dict[str, int]) -> torch.Tensor:
        """The tensor of a reference. Its memory is the memory of the file."""
        try:
            values, kind = self._memory(given[NUMBER])[given[OFFSET] :], getattr(torch, dtype)
            return values[: math.prod(shape) * kind.itemsize].view(kind).view(*shape)
        except BaseException:
            # The process ends, because otherwise only vLLM's thread would end, without a message,
            # and every request would wait forever.
            logger.exception("an embedding was not handed over")
            os._exit(1)

    def _memory(self, number: int) -> torch.Tensor:
        for sent, file in self._received():
            try:
                # Files whose messages were never sent may come first.
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
    """Makes this process's vLLM engine receive the tensors of a `Handover`. A second call does
    nothing."""
    from vllm.v1.engine.core import EngineCoreProc

    read_requests = EngineCoreProc.process_input_sockets
    if read_requests.__module__ == __name__:
        return

    def process_input_sockets(self: "EngineCoreProc", *args: Any, **kwargs: Any) -> None:
        address = os.environ.get(ADDRESS)
        if address is not None and self.tensor_ipc_receiver is None:
            # The Receiver replaces vLLM's TensorIpcReceiver, of which vLLM only uses __call__.
            receiver: Any = Receiver(address)
            self.tensor_ipc_receiver = receiver
        read_requests(self, *args, **kwargs)

    EngineCoreProc.process_input_sockets = process_input_sockets
