"""Runs uvicorn on the event loop of a process that has its own.

Library: uvicorn
Changes: nothing; it runs the parts of uvicorn.Server.serve one by one.
Why: `serve` installs handlers for the process's signals, which the gateway handles, and no setting
    prevents that. After the shutdown, it leaves some connections open.
Upstream: https://github.com/Kludex/uvicorn/issues/526
Versions: uvicorn 0.50 to 0.54
"""

import asyncio
import socket

import uvicorn

from pixtral_core.hooks import Touch, check_touches

_SERVER = "uvicorn.server"
TOUCHES = (
    Touch(_SERVER, "Server.__init__", mentions=("server_state", "should_exit")),
    Touch(_SERVER, "Server._serve", mentions=("lifespan", "lifespan_class", "startup")),
    Touch(_SERVER, "Server.startup", parameters=("sockets",), mentions=("lifespan",)),
    Touch(_SERVER, "Server.main_loop", mentions=("on_tick",)),
    Touch(_SERVER, "Server.on_tick", mentions=("should_exit",)),
    Touch(_SERVER, "Server.shutdown", mentions=("connections",)),
    Touch(_SERVER, "ServerState.__init__", mentions=("connections",)),
)


def check_upstream() -> None:
    """Raises HookBroken if uvicorn has changed."""
    check_touches(__name__, TOUCHES)


class UvicornServer:
    """One server of a loaded configuration. `start` and `stop` may each run once."""

    def __init__(self, config: uvicorn.Config) -> None:
        """Raises HookBroken if uvicorn has changed."""
        check_upstream()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        self._ticking: asyncio.Task[None] | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serves on `listener` once it has returned."""
        await self._server.startup(sockets=[listener])
        self._ticking = asyncio.create_task(self._server.main_loop())

    async def stop(self) -> None:
        """Waits for running requests as long as the configuration says, and ends the rest."""
        if self._ticking is None:
            return
        self._server.should_exit = True
        await self._ticking
        await self._server.shutdown()
        for connection in list(self._server.server_state.connections):
            # Every connection in this set serves HTTP and has its transport.
            connection.transport.abort()
