"""A TCP proxy that counts what passes."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

PIECE = 1 << 16


class ByteCounter:
    """Between clients and host:port `target`, in a `with` block. `sent` is what clients sent."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.sent = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exception: object) -> None:
        # Unlike close alone this wakes the thread that waits in it.
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                self._start(self._forward, client, server, True)
                self._start(self._forward, server, client, False)

    def _forward(self, source: socket.socket, sink: socket.socket, is_sent: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE):
                if is_sent:
                    self.sent += len(piece)
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
