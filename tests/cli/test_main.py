"""The commands, against a gateway in this process and against broken machines."""

import argparse
import io
import itertools
import json
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pixtral_cli import checkpoint_report, doctor, main, plan, terminal, up
from tests.support.fake_gateway import BAD_IMAGE, FakeGateway, serving
from tests.support.redis_server import RedisServer


@pytest.fixture(autouse=True)
def _console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.console, "stderr", False)


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()
    with serving(fake) as address:
        fake.address = address
        yield fake


def type_lines(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def texts(request: Any) -> list[list[str]]:
    """A request's turns: texts as they are, pictures as <their bytes>."""
    return [
        [part.text or f"<{part.image.data.decode()}>" for part in message.content]
        for message in request.chat.messages
    ]


@pytest.mark.parametrize("command", ["up", "chat", "demo", "doctor"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main.main([command, "--help"])
    assert left.value.code == 0
    assert f"usage: pixtral-serve {command}" in capsys.readouterr().out


@pytest.mark.parametrize("tier", ["gateway", "encoder", "decoder"])
def test_help_lists_every_tier(tier: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["--help"])
    assert f"pixtral-serve {tier} --help" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_tier_gets_its_own_arguments() -> None:
    command = [sys.executable, "-m", "pixtral_cli.main", "gateway", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert "--decoders" in done.stdout


def test_one_question(
    gateway: FakeGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    picture = str(tmp_path / "cat.jpg")
    code = main.main(["chat", "--target", gateway.address, "--image", picture, "What is this?"])
    assert code == 0
    printed = capsys.readouterr()
    assert printed.out == "A cat on a mat.\n"
    assert "first token 1.5 s" in printed.err
    assert "images cached: 1 of 1" in printed.err
    (request,) = gateway.requests
    assert texts(request) == [["<cat>", "What is this?"]]


def test_a_key_without_its_certificate_is_not_passed_over(
    gateway: FakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["chat", "--target", gateway.address, "--tls-private-key", "key.pem", "Hello?"]
    assert main.main(arguments) == 1
    assert "must be set together" in capsys.readouterr().err
    assert not gateway.requests


def test_conversation(
    gateway: FakeGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "my dog.jpg").write_bytes(b"dog")
    monkeypatch.chdir(tmp_path)
    type_lines(
        monkeypatch,
        "/image cat.jpg",
        "What is this?",
        "",
        'And @"my dog.jpg" beside @cat.jpg, asks @ada?',
        "/reset",
        "Hello",
        "/quit",
        "never asked",
    )
    assert main.main(["chat", "--target", gateway.address]) == 0
    answer = ["A cat on a mat."]
    first = ["<cat>", "What is this?"]
    assert [texts(request) for request in gateway.requests] == [
        [first],
        [first, answer, ["And", "<dog>", "beside", "<cat>", ", asks @ada?"]],
        [["Hello"]],
    ]


def test_conversation_goes_on_after_an_error(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch, "/image /no/such.jpg", "Hello")
    gateway.failure = BAD_IMAGE
    assert main.main(["chat", "--target", gateway.address]) == 1
    printed = capsys.readouterr().err
    assert "/no/such.jpg cannot be read: No such file or directory" in printed
    assert "messages[1].content[0].image.data: ends early" in printed
    assert len(gateway.requests) == 1


def test_ctrl_c_stops_the_answer_only(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt_once(text: str) -> str:
        if gateway.stuck:
            gateway.stuck = False
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr(terminal, "printable", interrupt_once)
    type_lines(monkeypatch, "Hello", "Again")
    gateway.stuck = True
    assert main.main(["chat", "--target", gateway.address]) == 0
    assert gateway.cancelled.wait(60)
    assert "stopped" in capsys.readouterr().err
    assert texts(gateway.requests[1]) == [["Hello"], ["A "], ["Again"]]


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["chat", "--target", "127.0.0.1:1", "Hello"]) == 1
    assert "pixtral-serve up MODEL" in capsys.readouterr().err


def test_answers_cannot_steer_the_terminal(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.support.fake_gateway.WORDS", ["\x1b]0;owned\x07", "[red]é\n"])
    assert main.main(["chat", "--target", gateway.address, "Hello"]) == 0
    assert capsys.readouterr().out == "\ufffd]0;owned\ufffd[red]é\n\n"


def test_up_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ports = ["--port", "0", "--listen", "127.0.0.1:0"]
    assert main.main(["up", "--model-dir", str(tmp_path), *ports]) == 1
    assert "has no params.json" in capsys.readouterr().err


def test_up_serves_a_model_by_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(Exception):
        pass

    def start(options: argparse.Namespace, **_: Any) -> None:
        raise Started(options.gateway_args)

    monkeypatch.setattr(up, "start_stack", start)
    monkeypatch.setattr(up, "check_ports", lambda addresses: None)
    names = ["--served-model-name", "mistralai/Pixtral-12B-2409", "pixtral"]
    with pytest.raises(Started, match="--served-model-name=mistralai/Pixtral-12B-2409,pixtral"):
        main.main(["up", "--model-dir", str(tmp_path), *names])


def test_up_fetches_images_from_the_hosts_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []

    def start(options: argparse.Namespace, **_: Any) -> None:
        given.extend(shlex.split(options.gateway_args))
        raise KeyboardInterrupt

    monkeypatch.setattr(up, "start_stack", start)
    monkeypatch.setattr(up, "check_ports", lambda addresses: None)
    hosts = ["--image-urls", "images.example.org", ".example.com", "*"]
    assert main.main(["up", "--model-dir", str(tmp_path), *hosts]) == 130
    assert given == ["--image-url-hosts=images.example.org,.example.com,*"]


def write_weights(path: Path, *, missing: int = 0) -> None:
    header = {
        name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
        for name in ("vision_encoder.x", "output.weight")
    }
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(16 - missing))


def write_model(directory: Path) -> None:
    (directory / "params.json").write_text(json.dumps({"vision_encoder": {}}))
    (directory / "tekken.json").write_text("{}")
    write_weights(directory / "consolidated.safetensors")


def failures(directory: Path) -> list[str]:
    return [item.what for item in checkpoint_report.check_model(directory) if item.level == "fail"]


def test_doctor_finds_a_whole_model(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert failures(tmp_path) == []
    assert [finding.level for finding in checkpoint_report.check_memory(tmp_path)] == ["ok"]


def test_doctor_names_what_a_model_lacks(tmp_path: Path) -> None:
    assert failures(tmp_path / "none") == [f"{tmp_path / 'none'} is not a directory"]

    write_model(tmp_path)
    write_weights(tmp_path / "consolidated.safetensors", missing=1)
    assert failures(tmp_path) == [
        "consolidated.safetensors: shorter than its header says: a download cut short"
    ]
    (tmp_path / "consolidated.safetensors").write_bytes(b"<html>not here</html>")
    assert "not a safetensors file" in failures(tmp_path)[0]
    (tmp_path / "consolidated.safetensors").unlink()
    assert "has no consolidated*.safetensors" in failures(tmp_path)[0]

    write_model(tmp_path)
    (tmp_path / "tekken.json").unlink()
    (tmp_path / "params.json").write_text("{}")
    assert failures(tmp_path) == [
        "params.json has no vision_encoder: another model",
        f"{tmp_path}/tekken.json is missing",
    ]
    (tmp_path / "params.json").write_text("[]")
    assert failures(tmp_path)[0] == f"{tmp_path}/params.json is missing or not JSON"


def test_doctor_wants_a_compiler_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", sys.executable)
    assert [finding.level for finding in doctor.check_compiler()] == ["ok"]
    monkeypatch.setenv("CC", "/nowhere/cc")
    (finding,) = doctor.check_compiler()
    assert finding.level == "fail"
    assert "/nowhere/cc" in finding.what


def test_doctor_starts_redis_or_tries_the_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIXTRAL_REDIS_URL", raising=False)
    (finding,) = doctor.check_redis()
    assert finding.level == "ok"
    assert "redis-server starts" in finding.what

    monkeypatch.setenv("PIXTRAL_REDIS_URL", "redis://:secret@127.0.0.1:1/0")
    (finding,) = doctor.check_redis()
    assert finding.level == "fail"
    assert "cannot be used" in finding.what
    assert "secret" not in finding.what + finding.advice


def test_doctor_tries_the_password_of_the_given_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisServer() as server, server.client() as client:
        client.config_set("requirepass", "right")
        levels = {}
        for password in ("right", "wrong"):
            url = f"redis://:{password}@127.0.0.1:{server.port}/0"
            monkeypatch.setenv("PIXTRAL_REDIS_URL", url)
            (finding,) = doctor.check_redis()
            levels[password] = finding.level
    assert levels == {"right": "ok", "wrong": "fail"}


def test_doctor_warns_of_a_redis_that_the_tiers_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisServer() as server:
        # An address of this machine that does not say so.
        monkeypatch.setenv("PIXTRAL_REDIS_URL", f"redis://0.0.0.0:{server.port}")
        (finding,) = doctor.check_redis()
    assert finding.level == "warn"
    assert "PIXTRAL_ALLOW_INSECURE" in finding.advice


def test_doctor_tells_nothing_of_a_malformed_redis_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_REDIS_URL", "redis://:sec/ret@127.0.0.1:1/0")
    (finding,) = doctor.check_redis()
    assert finding.level == "fail"
    assert "sec" not in (finding.what + finding.advice).replace("rediss", "").replace("special", "")


def test_doctor_sees_a_taken_port(gateway: FakeGateway) -> None:
    def levels(address: str) -> list[str]:
        return [finding.level for finding in doctor.check_listen(address, "--http-listen")]

    assert levels("127.0.0.1:0") == ["ok"]
    assert levels(gateway.address) == levels("nowhere") == ["warn"]


def test_doctor_fails_on_a_broken_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Slow imports have a check of their own, and are not the point here.
    monkeypatch.setattr(doctor, "_probe", lambda code: (None, "skipped"))
    assert main.main(["doctor", "--model-dir", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"^fail .*params\.json is missing or not JSON$", printed, re.MULTILINE)
    assert re.search(r"^ok +Python 3", printed, re.MULTILINE)
    assert "->" in printed


def test_a_probe_tells_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._probe("print('noise'); print('[1]')") == ([1], "")
    assert doctor._probe("import no_such_module")[1].endswith("No module named 'no_such_module'")
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT", 0.1)
    assert doctor._probe("import time; time.sleep(60)") == (None, "not in 0.1 s")


def test_plan_says_the_gpus_of_each_topology_and_where_its_figures_are_from(
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked = ["--rate", "2", "--reuse", "0.5", "--output-tokens", "10"]
    assert main.main(["plan", *asked]) == 0
    printed = capfd.readouterr().out
    gpus = {
        name: int(line.removeprefix(name).split()[3])
        for line in printed.splitlines()
        for name in ("ours, split", "ours, co-located", "stock vLLM")
        if line.startswith(name)
    }
    assert gpus == {"ours, split": 2, "ours, co-located": 1, "stock vLLM": 1}
    assert re.search(r"prefill_seconds: 3\.595e-05, derived from one H200, vLLM 0\.33\.0", printed)


@pytest.mark.parametrize("wrong", [("--reuse", "1.5"), ("--reuse", "-1"), ("--rate", "0")])
def test_plan_refuses_what_no_load_can_be(
    wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--rate": "2", "--reuse": "0.5"} | dict([wrong])
    assert main.main(["plan", *itertools.chain(*given.items())]) == 1
    assert wrong[0] in capsys.readouterr().err


def test_plan_says_where_the_simulator_is_outside_the_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clone the project's source"):
        plan.run_plan(argparse.Namespace(), tmp_path)
