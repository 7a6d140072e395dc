"""The HTTP server, on the event loop of the gateway's gRPC server."""

import asyncio
import logging
import socket
import ssl

import uvicorn

from pixtral_core.errors import StartupError
from pixtral_core.server.certificates import ServerCertificate
from pixtral_gateway.api.http import bounded_protocol
from pixtral_gateway.api.http.bounded_protocol import BoundedProtocol
from pixtral_gateway.api.http.cross_origin import allowing
from pixtral_gateway.api.http.middleware import RequestMiddleware
from pixtral_gateway.api.http.uvicorn_server import UvicornServer
from pixtral_gateway.settings import GatewaySettings

# The pools of common clients close an idle connection earlier than this.
KEEP_ALIVE_SECONDS = 75
# Seconds between two checks whether the certificate on disk has changed.
CERTIFICATE_SECONDS = 10.0
# The most seconds for sending written data to clients that read.
FLUSH_SECONDS = 1


logger = logging.getLogger(__name__)


class HttpServer:
    """Serves `app` on the settings' `http_listen`, from `open` to `close`."""

    def __init__(self, app: RequestMiddleware, listen: str, settings: GatewaySettings) -> None:
        self._app = app
        self._listen = listen
        self._settings = settings
        self._server: UvicornServer | None = None
        self._following: asyncio.Task[None] | None = None

    async def open(self) -> str:
        """Binds and serves; returns host:port. Raises StartupError."""
        bounded_protocol.check_upstream()
        config = self._config()
        host, _, port = self._listen.rpartition(":")
        bare = host.strip("[]")
        family = socket.AF_INET6 if ":" in bare else socket.AF_INET
        try:
            config.load()
            listener = socket.create_server(
                (bare, int(port)), family=family, reuse_port=self._settings.workers > 1
            )
        except ssl.SSLError:
            raise StartupError(
                "the HTTP server cannot use the files of its TLS certificate"
            ) from None
        except OSError:
            raise StartupError(f"cannot listen on {self._listen}") from None
        # Connections inherit this option. asyncio does not recognise them as TCP, and so does not
        # set it. Without it, an answer's body would wait until its head is acknowledged.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server = UvicornServer(config)
        await self._server.start(listener)
        certificate = self._settings.server_certificate
        if certificate is not None and config.ssl is not None:
            self._following = asyncio.create_task(_follow(certificate, config.ssl))
        return f"{host}:{listener.getsockname()[1]}"

    async def close(self) -> None:
        """Ends running requests with an error that says that the server is shutting down, and
        closes all connections."""
        if self._server is None:
            return
        if self._following is not None:
            self._following.cancel()
        await self._app.end()
        await self._server.stop()

    def _config(self) -> uvicorn.Config:
        settings = self._settings
        return uvicorn.Config(
            allowing(self._app, settings.allowed_origins),
            loop="none",
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            workers=1,
            # This project's own log has a line for each request.
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FLUSH_SECONDS,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_private_key,
            ssl_ca_certs=str(settings.tls_client_ca) if settings.tls_client_ca else None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if settings.tls_client_ca else ssl.CERT_NONE,
            # Otherwise the next request of a connection would begin in the context of the previous
            # one, and log with its ids.
            reset_contextvars=True,
        )


async def _follow(certificate: ServerCertificate, context: ssl.SSLContext) -> None:
    """Gives new connections the certificate on disk. Logs a warning if the certificate cannot be
    used."""
    files = certificate.files()
    while True:
        await asyncio.sleep(CERTIFICATE_SECONDS)
        if not files.changed():
            continue
        try:
            certificate.reload(context)
        except StartupError as error:
            logger.warning("cannot use the new certificate; the old one stays in use: %s", error)
