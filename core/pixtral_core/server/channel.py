"""gRPC channels from one tier to another."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from pixtral_core import limits
from pixtral_core.errors import StartupError

MAX_MESSAGE_BYTES = limits.MESSAGE_BYTES.most

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A channel finds a replica that returns within seconds; with gRPC's own limit it may take two
    # minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    # A proxy for traffic out of the cluster must not be used between its tiers.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files: the authority that signs peers' certificates and, for mTLS, this process's own
    certificate.

    `server_name` is the name in a peer's certificate; None means the host of the address.
    """

    ca: Path
    certificate: Path | None = None
    private_key: Path | None = None
    server_name: str | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that a channel reads when it is opened."""
        return tuple(filter(None, (self.ca, self.certificate, self.private_key)))


def open_channel(address: str, tls: ClientTls | None) -> grpc.aio.Channel:
    """A channel to host:port, which connects when first used. `tls` None is plaintext.

    Raises StartupError for a file that cannot be read.
    """
    if tls is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read_pem(tls.ca),
        private_key=read_pem(tls.private_key) if tls.private_key else None,
        certificate_chain=read_pem(tls.certificate) if tls.certificate else None,
    )
    options: tuple[tuple[str, int | str], ...] = _OPTIONS
    if tls.server_name is not None:
        options += (("grpc.ssl_target_name_override", tls.server_name),)
    return grpc.aio.secure_channel(address, credentials, options=options)


def read_pem(path: Path) -> bytes:
    """The file's content. Raises StartupError if it cannot be read or is not PEM."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror}") from None
    if b"-----BEGIN " not in data:
        raise StartupError(f"{path} is not a PEM file")
    return data
