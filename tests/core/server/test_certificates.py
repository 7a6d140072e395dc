"""Certificates that are replaced on disk while a server runs."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from pixtral_core.errors import StartupError
from pixtral_core.server.certificates import ServerCertificate, WatchedFiles
from pixtral_core.server.channel import ClientTls, open_channel
from pixtral_core.server.process import running
from pixtral_core.settings import ProcessSettings
from tests.support.certificate_authority import Authority
from tests.support.echo_tier import Context, EchoStub, EchoTier


async def upper(request: StringValue, context: Context) -> StringValue:
    return StringValue(value=request.value.upper())


def put(files: tuple[Path, Path], to: Path) -> tuple[Path, Path]:
    """Moves a certificate and its key where a server has them, as a volume of Kubernetes does."""
    to.mkdir(exist_ok=True)
    for source, name in zip(files, ("tls.crt", "tls.key"), strict=True):
        shutil.copy(source, to / f".{name}")
        (to / f".{name}").replace(to / name)
    return to / "tls.crt", to / "tls.key"


async def answers(address: str, tls: ClientTls) -> bool:
    async with open_channel(address, tls) as channel:
        try:
            reply = await EchoStub(channel).unary(StringValue(value="a"), timeout=20)
        except Exception:  # any failure of the handshake
            return False
        return reply.value == "A"


@pytest.fixture
def authorities(tmp_path: Path) -> tuple[Authority, Authority]:
    return Authority(tmp_path, "old"), Authority(tmp_path, "new")


async def test_new_connections_get_the_certificate_on_disk_and_no_old_one_is_cut(
    tmp_path: Path, authorities: tuple[Authority, Authority]
) -> None:
    old, new = authorities
    certificate, private_key = put(old.issue("server"), tmp_path / "tls")
    settings = ProcessSettings(tls_certificate=certificate, tls_private_key=private_key)
    async with (
        running(EchoTier(unary=upper), settings) as addresses,
        open_channel(addresses.grpc, ClientTls(old.ca)) as channel,
    ):
        stub = EchoStub(channel)
        assert (await stub.unary(StringValue(value="a"), timeout=60)).value == "A"

        put(new.issue("server"), tmp_path / "tls")

        assert await answers(addresses.grpc, ClientTls(new.ca))
        assert not await answers(addresses.grpc, ClientTls(old.ca))
        assert (await stub.unary(StringValue(value="a"), timeout=60)).value == "A"


async def test_clients_of_another_authority_are_let_in_once_it_is_on_disk(
    tmp_path: Path, authorities: tuple[Authority, Authority]
) -> None:
    old, new = authorities
    certificate, private_key = put(old.issue("server"), tmp_path / "tls")
    client_ca = Path(shutil.copy(old.ca, tmp_path / "clients.pem"))
    settings = ProcessSettings(
        tls_certificate=certificate, tls_private_key=private_key, tls_client_ca=client_ca
    )
    theirs = ClientTls(old.ca, *new.issue("client"))
    async with running(EchoTier(unary=upper), settings) as addresses:
        assert not await answers(addresses.grpc, theirs)

        shutil.copy(new.ca, client_ca)

        assert await answers(addresses.grpc, theirs)


async def test_files_that_cannot_serve_leave_the_certificate_in_use(
    tmp_path: Path, authorities: tuple[Authority, Authority], caplog: pytest.LogCaptureFixture
) -> None:
    old, new = authorities
    certificate, private_key = put(old.issue("server"), tmp_path / "tls")
    settings = ProcessSettings(tls_certificate=certificate, tls_private_key=private_key)
    async with running(EchoTier(unary=upper), settings) as addresses:
        # Its key is still that of the other.
        shutil.copy(new.issue("server")[0], certificate)

        assert await answers(addresses.grpc, ClientTls(old.ca))
        assert "the old one stays in use" in caplog.text

        put(new.issue("server"), tmp_path / "tls")

        assert await answers(addresses.grpc, ClientTls(new.ca))


@pytest.fixture
async def https(
    tmp_path: Path, authorities: tuple[Authority, Authority]
) -> AsyncIterator[tuple[ServerCertificate, ssl.SSLContext, int]]:
    certificate = ServerCertificate(*put(authorities[0].issue("server"), tmp_path / "tls"), None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.private_key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield certificate, context, server.sockets[0].getsockname()[1]
    server.close()


async def shown(port: int) -> bytes:
    """The certificate that a new connection is shown."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return found


async def test_a_context_takes_other_files_for_new_connections(
    tmp_path: Path,
    authorities: tuple[Authority, Authority],
    https: tuple[ServerCertificate, ssl.SSLContext, int],
) -> None:
    certificate, context, port = https
    before = await shown(port)
    put(authorities[1].issue("server"), tmp_path / "tls")

    certificate.reload(context)

    after = await shown(port)
    assert after != before
    certificate.certificate.write_text("no certificate")
    with pytest.raises(StartupError, match="must be the private key"):
        certificate.reload(context)
    assert await shown(port) == after


def test_a_change_is_told_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    files = WatchedFiles((one, two))
    assert not files.changed()
    two.write_text("a")
    assert files.changed()
    assert not files.changed()
    (tmp_path / "new").write_text("a")
    (tmp_path / "new").replace(one)
    assert files.changed()
