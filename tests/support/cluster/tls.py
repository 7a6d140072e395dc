"""TLS handshakes in memory with the files of two Secrets, as between two tiers."""

import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support.cluster.state import Fault

# Client and server of each connection. The name of a Service is also that of its certificate.
CALLS = (
    ("gateway", "encoder"),
    ("gateway", "decoder"),
    ("decoder", "encoder"),
    ("gateway", "redis"),
    ("encoder", "redis"),
    ("decoder", "redis"),
)


def shake_hands(
    server: Mapping[str, bytes], client: Mapping[str, bytes], name: str, *, is_mutual: bool
) -> None:
    """The client connects to the server as `name`. Raises Fault if either refuses the other."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            listening = _context(ssl.PROTOCOL_TLS_SERVER, server, Path(directory) / "server")
            calling = _context(ssl.PROTOCOL_TLS_CLIENT, client, Path(directory) / "client")
            listening.verify_mode = ssl.CERT_REQUIRED if is_mutual else ssl.CERT_NONE
            _exchange(listening, calling, name)
        except (ssl.SSLError, ValueError) as error:
            raise Fault(f"no TLS with {name}: {error}") from None


def _context(protocol: int, files: Mapping[str, bytes], directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    directory.mkdir()
    for entry, data in files.items():
        (directory / entry).write_bytes(data)
    context.load_verify_locations(directory / "ca.crt")
    if "tls.crt" in files:
        context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    return context


def _exchange(listening: ssl.SSLContext, calling: ssl.SSLContext, name: str) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = calling.wrap_bio(to_client, to_server, server_hostname=name)
    server = listening.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    # Each round passes bytes both ways; a whole handshake needs fewer rounds.
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
        if not waiting:
            return
    raise ValueError("the handshake does not end")
