"""Certificates from files, read again when the files change, without a restart or a cut stream."""

import logging
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from pixtral_core.errors import StartupError
from pixtral_core.server.channel import read_pem

logger = logging.getLogger(__name__)

Stamp = tuple[int, int, int] | None


@dataclass(slots=True)
class WatchedFiles:
    """Notices when one of several files has been replaced, by its inode, size and time."""

    paths: tuple[Path, ...]
    _seen: tuple[Stamp, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._seen = self._stamps()

    def changed(self) -> bool:
        """Whether the files have changed since the last check or, at the first check, since this
        object was made."""
        before, self._seen = self._seen, self._stamps()
        return self._seen != before

    def _stamps(self) -> tuple[Stamp, ...]:
        return tuple(map(_stamp, self.paths))


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """The certificate of a server, its key, and the authority of its clients, if they need one."""

    certificate: Path
    private_key: Path
    client_ca: Path | None

    def files(self) -> WatchedFiles:
        return WatchedFiles(tuple(self._paths()))

    def check(self) -> None:
        """Raises StartupError if the files are not a pair that can serve."""
        try:
            # gRPC itself does not check the pair, and would fail every handshake.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.certificate, self.private_key, password=b""
            )
        except (ssl.SSLError, ValueError, OSError):
            raise StartupError(
                f"{self.private_key} must be the private key, without a password, of "
                f"{self.certificate}"
            ) from None

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that look for new files before each handshake.

        If new files cannot serve, a warning is logged and the last files stay in use. Raises
        StartupError if the first files cannot serve. gRPC keeps no reference to the credentials, so
        the caller must keep one while the server serves.
        """
        files = self.files()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            if not files.changed():
                return None
            try:
                found = self._read()
            except StartupError as error:
                logger.warning(
                    "cannot use the new certificate; the old one stays in use: %s", error
                )
                return None
            logger.info("the new certificate is in use: %s", self.certificate)
            return found

        return grpc.dynamic_ssl_server_credentials(
            self._read(),
            fetch,  # type: ignore[arg-type]  # None: no change, as gRPC's own text says
            require_client_authentication=self.client_ca is not None,
        )

    def reload(self, context: ssl.SSLContext) -> None:
        """Gives new handshakes of `context` the current files. Raises StartupError."""
        self.check()
        context.load_cert_chain(self.certificate, self.private_key)
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        pair = (read_pem(self.private_key), read_pem(self.certificate))
        self.check()
        return grpc.ssl_server_certificate_configuration(
            [pair], root_certificates=None if self.client_ca is None else read_pem(self.client_ca)
        )

    def _paths(self) -> Iterable[Path]:
        yield from (self.certificate, self.private_key)
        if self.client_ca is not None:
            yield self.client_ca


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns)
