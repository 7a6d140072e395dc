"""`python -m pixtral_gateway` as a process of its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest

from pixtral.v1 import chat_pb2, chat_pb2_grpc
from pixtral_core.settings import load
from pixtral_gateway.settings import GatewaySettings
from tests.support.fake_tiers import FakeDecoder
from tests.support.gateway_harness import eventually
from tests.support.gateway_pictures import text, user

ROOT = Path(__file__).parents[2]
ENVIRONMENT = dict(os.environ)


@pytest.mark.parametrize("scheme", ["", "dns:///"])
async def test_serves_until_told_to_stop(
    model_dir: Path, tmp_path: Path, decoders: list[FakeDecoder], scheme: str
) -> None:
    told = tmp_path / "addresses.json"
    flags = {
        "listen": "127.0.0.1:0",
        "http-listen": "127.0.0.1:0",
        "model-dir": str(model_dir),
        "decoders": ",".join(scheme + decoder.address for decoder in decoders),
        "address-file": str(told),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "pixtral_gateway"),
        *(f"--{name}={value}" for name, value in flags.items()),
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    try:
        await eventually(told.exists, 180)
        addresses = json.loads(told.read_text())
        async with grpc.aio.insecure_channel(addresses["grpc"]) as channel:
            stub = chat_pb2_grpc.ChatServiceStub(channel)
            response = await _when_ready(
                stub, chat_pb2.CompleteRequest(chat=chat_pb2.Chat(messages=[user(text("Hello?"))]))
            )
        assert response.choices[0].text == "Hello world"
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            answer = await http.post(
                f"http://{addresses['http']}/v1/chat/completions",
                json={"messages": [{"role": "user", "content": "Hello?"}]},
            )
        assert answer.json()["choices"][0]["message"]["content"] == "Hello world"
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _when_ready(
    stub: "chat_pb2_grpc.ChatServiceAsyncStub", request: chat_pb2.CompleteRequest
) -> chat_pb2.CompleteResponse:
    async with asyncio.timeout(180):
        while True:
            try:
                return await stub.Complete(request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "model_dir"),
        (["--decoders="], "decoders"),
        (["--decoders=127.0.0.1:1", "--listen=0.0.0.0:1"], "allow_insecure"),
        (["--decoders=127.0.0.1:1", "--http-listen=0.0.0.0:1"], "http_listen"),
        (["--decoders=nowhere"], "decoders"),
    ],
)
def test_wrong_settings_are_told_in_a_line(
    model_dir: Path,
    flags: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("PIXTRAL_")]:
        monkeypatch.delenv(name)
    argv = [*flags, *([f"--model-dir={model_dir}"] if flags else [])]

    with pytest.raises(SystemExit) as left:
        load(GatewaySettings, argv, prog="gateway")

    assert left.value.code == 2
    assert named in capsys.readouterr().err


def test_name_is_the_directorys_unless_given(model_dir: Path) -> None:
    def named(**values: str) -> str:
        return GatewaySettings(model_dir=model_dir, decoders=("127.0.0.1:1",), **values).model_name  # type: ignore[arg-type]

    assert named() == "pixtral-small"
    assert named(model="pixtral") == "pixtral"


def test_a_snapshot_of_a_repository_goes_by_the_repositorys_id(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--mistralai--Pixtral-12B-2409" / "snapshots" / "c2756cbb"
    snapshot.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(snapshot)

    for directory in (snapshot, link):
        settings = GatewaySettings(model_dir=directory, decoders=("127.0.0.1:1",))
        assert settings.model_names == ("mistralai/Pixtral-12B-2409",)


def test_a_model_may_have_several_names(model_dir: Path) -> None:
    flags = ["--served-model-name=a/b,c", "--decoders=127.0.0.1:1", f"--model-dir={model_dir}"]
    assert load(GatewaySettings, flags, prog="gateway").model_names == ("a/b", "c")


def test_needs_neither_torch_nor_vllm() -> None:
    script = (
        "import sys, pixtral_gateway.process; sys.exit(bool({'torch', 'vllm'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT).returncode == 0
