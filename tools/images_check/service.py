"""Asks a running stack as its clients do: answers, a drain, and certificates that change."""

import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc

from pixtral_client import Client, PixtralError, Tls
from tools.images_check.node import Failed, Node, Running, is_serving, publish, wait_until
from tools.images_check.secrets import renew

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "demo" / "street.png"
HEALTH = 8081
# docs/deploy.md says "within a minute".
SECONDS_TO_LEAVE = 30.0
SECONDS_TO_SERVE_A_CERTIFICATE = 60.0
PORTS = {"gateway": (50051, 8000), "encoder": (50052,), "decoder": (50053,)}
# The beginning of a connection, with empty settings: a gRPC server answers with its own.
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
TOKENS = 200
STREAMS = 2
SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Door:
    """How to reach the gateway. `directory` has ca.crt and the pairs of every name."""

    target: str
    directory: Path | None = None
    api_key: str | None = None

    def client(self) -> Client:
        tls = None if self.directory is None else Tls(ca=self.directory / "ca.crt")
        return Client(self.target, tls=tls, api_key=self.api_key)


def answer(door: Door) -> str:
    """The text of an answer about an image. Raises Failed."""
    question = [PICTURE, "What is this?"]
    try:
        with door.client() as client:
            completion = client.chat(
                [{"role": "user", "content": question}], max_tokens=8, timeout=SECONDS
            )
    except PixtralError as error:
        raise Failed(f"no answer: {error}") from None
    if completion.usage.completion_tokens != 8:
        raise Failed(f"an answer of {completion.usage.completion_tokens} tokens, and not of 8")
    return completion.text


def strangers_are_refused(door: Door) -> None:
    """Raises Failed if a caller without a key, or a tier's without a certificate, is let in."""
    try:
        with Door(door.target, door.directory).client() as client:
            client.models(timeout=SECONDS)
    except PixtralError as error:
        if error.code is not grpc.StatusCode.UNAUTHENTICATED:
            raise Failed(f"a caller without an API key is answered with {error}") from None
    else:
        raise Failed("the gateway answers a caller without an API key")
    for name in ("encoder", "decoder"):
        (port,) = PORTS[name]
        try:
            served(door, name, port, is_client_known=False)
        except OSError:
            continue
        raise Failed(f"the {name} lets in a caller without a certificate")


@dataclass(slots=True)
class Streams:
    """Streams that follow each other in threads until `stop`; each must be whole."""

    door: Door
    tokens: int
    is_over: threading.Event = field(default_factory=threading.Event)
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    whole: int = 0
    faults: list[str] = field(default_factory=list)

    def run(self) -> None:
        try:
            with self.door.client() as client:
                while not self.is_over.is_set():
                    self._stream(client)
        except PixtralError as error:
            self.faults.append(f"a stream was cut: {error}")
        finally:
            self.begun.release()

    def _stream(self, client: Client) -> None:
        message = {"role": "user", "content": "Tell me a story."}
        with client.stream(
            [message], max_tokens=self.tokens, ignore_eos=True, timeout=SECONDS
        ) as stream:
            for number, _ in enumerate(stream):
                if number == 0:
                    self.begun.release()
        completion = stream.completion
        count = completion.usage.completion_tokens if completion else 0
        if count != self.tokens:
            self.faults.append(f"a stream ended after {count} of {self.tokens} tokens")
        self.whole += 1


@contextmanager
def streaming(door: Door, count: int, tokens: int) -> Iterator[Streams]:
    """Streams, each of which has begun. At the end all are awaited; raises Failed if one was
    cut."""
    streams = Streams(door, tokens)
    threads = [threading.Thread(target=streams.run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            streams.begun.acquire(timeout=SECONDS)
        yield streams
    finally:
        streams.is_over.set()
        for thread in threads:
            thread.join()
    if streams.faults:
        raise Failed("; ".join(streams.faults))


def drains(door: Door, running: Mapping[str, Running], names: Sequence[str]) -> None:
    """SIGTERM to these containers while a stream runs: it ends whole, and then they do with 0."""
    with streaming(door, 1, tokens=10 * TOKENS) as streams:
        streams.is_over.set()
        for name in names:
            running[name].signal("TERM")
        for name in names:
            if not wait_until(partial(_is_leaving, running[name]), SECONDS_TO_LEAVE):
                raise Failed(f"{name} still says that it serves after SIGTERM")
        if streams.whole:
            raise Failed("the stream was over before the signal: the check has shown nothing")
    for name in names:
        if status := running[name].ends(SECONDS):
            raise Failed(f"{name} ends with {status} on SIGTERM:\n{running[name].last_lines()}")


def _is_leaving(running: Running) -> bool:
    return not is_serving(running.address, HEALTH)


def certificates_change(door: Door, node: Node, running: Mapping[str, Running]) -> None:
    """Replaces the tiers' certificates under running streams. Raises Failed if a port serves an
    old one after a minute, or a stream is cut."""
    directory = door.directory
    if directory is None:
        raise ValueError("this door has no certificates")
    before = {(name, port): served(door, name, port) for name, port in _ports()}
    with streaming(door, STREAMS, TOKENS) as streams:
        for name in PORTS:
            renew(directory, name)
            files = {"tls.crt": f"{name}.crt", "tls.key": f"{name}.key", "ca.crt": "ca.crt"}
            texts = {key: (directory / file).read_text() for key, file in files.items()}
            publish(node.secret(name, f"{name}-tls"), texts, 10001, 0o440)

        def all_new() -> bool:
            return all(served(door, name, port) == _of(directory, name) for name, port in _ports())

        if not wait_until(all_new, SECONDS_TO_SERVE_A_CERTIFICATE):
            old = [f"{n}:{p}" for n, p in _ports() if served(door, n, p) == before[n, p]]
            raise Failed(f"still with the old certificate after a minute: {' '.join(old)}")
        whole = streams.whole
        # Each of them began before, or right after, the change.
        wait_until(lambda: streams.whole >= whole + STREAMS or bool(streams.faults), SECONDS)


def _ports() -> list[tuple[str, int]]:
    return [(name, port) for name, ports in PORTS.items() for port in ports]


def _of(directory: Path, name: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert((directory / f"{name}.crt").read_text())


def served(door: Door, name: str, port: int, *, is_client_known: bool = True) -> bytes:
    """The certificate that a new connection is shown. Raises OSError if there is none."""
    directory = door.directory
    if directory is None:
        raise ValueError("this door has no certificates")
    context = ssl.create_default_context(cafile=directory / "ca.crt")
    context.set_alpn_protocols(["h2", "http/1.1"])
    if is_client_known:
        context.load_cert_chain(directory / "gateway.crt", directory / "gateway.key")
    with (
        socket.create_connection((name, port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as connection,
    ):
        # With TLS 1.3 a server refuses a client's certificate after the client's handshake.
        if not is_client_known:
            connection.sendall(HTTP2)
            if not connection.recv(1):
                raise ConnectionError(f"{name} ends the connection")
        return connection.getpeercert(binary_form=True) or b""
