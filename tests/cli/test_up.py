"""The flags of `pixtral-serve up` become those of the tiers, and its ports are tried first."""

import argparse
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pixtral_cli import main, up, up_options
from pixtral_cli.stack.pixtral_stack import pixtral_stack
from pixtral_gateway.tenancy.tenants import Tenants
from tests.support.fake_gateway import FakeGateway, serving


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options and addresses with which `up` would start a stack."""
    found: dict[str, Any] = {}

    def start(options: argparse.Namespace, **more: Any) -> None:
        found.update(vars(options), **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(up, "start_stack", start)
    monkeypatch.setattr(up, "check_ports", lambda addresses: None)
    monkeypatch.setattr(up_options, "gpus_here", lambda: [])
    return found


def start(*arguments: str) -> None:
    assert main.main(["up", *arguments]) == 130


def test_names_of_vllm_reach_the_tiers(started: dict[str, Any]) -> None:
    start(
        *("/models/pixtral", "--host", "0.0.0.0", "--port", "9000", "--max-model-len", "32K"),  # noqa: S104
        *("--gpu-memory-utilization", "0.8", "--quantization", "fp8", "-tp", "2"),
        *("--limit-mm-per-prompt", '{"image": 4}', "--served-model-name", "a", "b"),
        *("--decoder-args", "--max-running 8", "--gateway-args", "--page"),
    )
    assert started["model_dir"] == Path("/models/pixtral")
    assert started["http_listen"] == "0.0.0.0:9000"
    assert shlex.split(started["decoder_args"]) == [
        *("--max-images=4", "--context-length=32768", "--gpu-memory-fraction=0.8"),
        *("--quantization=fp8", "--tensor-parallel=2", "--max-running", "8"),
    ]
    assert shlex.split(started["gateway_args"]) == [
        *("--served-model-name=a,b", "--max-images=4", "--page"),
    ]


@pytest.mark.parametrize(
    ("text", "count"), [("8192", 8192), ("32k", 32_000), ("32K", 32_768), ("1m", 1_000_000)]
)
def test_a_length_is_read_as_vllm_reads_it(text: str, count: int) -> None:
    assert up_options.tokens(text) == count


@pytest.mark.parametrize("text", ['{"image": 4}', "image=4", '{"image": {"count": 4}}'])
def test_a_limit_of_images_has_vllms_forms(text: str) -> None:
    assert up_options.images_of(text) == 4


@pytest.mark.parametrize(
    "flags",
    [
        *(["--max-model-len", "long"], ["--limit-mm-per-prompt", "video=1"], ["--port", "x"]),
        ["--no-such-flag"],
    ],
)
def test_a_wrong_flag_is_an_error(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main.main(["up", "/models/pixtral", *flags])
    assert left.value.code == 2


def test_a_model_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["up"]) == 2
    assert "pixtral-serve up MODEL" in capsys.readouterr().err


def test_an_api_key_is_needed_and_its_file_has_the_digest_alone(
    started: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: dict[str, Any] = {}

    def look(addresses: Any) -> None:
        (path,) = Path(tempfile.gettempdir()).glob("pixtral-keys-*")
        seen.update(path=path, text=path.read_text(), mode=path.stat().st_mode)
        seen["tenant"] = Tenants(path).of("Bearer secret")

    monkeypatch.setattr(up, "check_ports", look)
    start("/models/pixtral", "--api-key", "secret")
    assert started["gateway_args"] == f"--api-keys={seen['path']}"
    assert seen["mode"] & 0o077 == 0
    assert "secret" not in seen["text"]
    assert seen["tenant"].name == "api-key"
    assert not seen["path"].exists()


def test_a_file_has_flags_and_settings_of_tiers(started: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "up.toml"
    file.write_text(
        """
        model = "/models/pixtral"
        port = 9000
        max_model_len = "16K"
        served_model_name = ["a", "b"]
        no_page = true
        [gateway]
        max_image_bytes = 1000
        image_url_hosts = ["one.example", "two.example"]
        [decoder]
        enforce = false
        engine_args = { quantization = "fp8", seed = 1 }
        """
    )
    start("--config", str(file))
    assert started["model_dir"] == Path("/models/pixtral")
    assert started["http_listen"] == "127.0.0.1:9000"
    assert shlex.split(started["gateway_args"]) == [
        *("--no-page", "--served-model-name=a,b", "--max-image-bytes=1000"),
        "--image-url-hosts=one.example,two.example",
    ]
    assert shlex.split(started["decoder_args"]) == [
        *("--context-length=16384", "--no-enforce", "--engine-args=quantization=fp8"),
        "--engine-args=seed=1",
    ]
    start("/models/other", "--config", str(file), "--port", "9001")
    assert started["model_dir"] == Path("/models/other")
    assert started["http_listen"] == "127.0.0.1:9001"


@pytest.mark.parametrize(
    ("text", "said"),
    [("gateway = 1", "gateway must be a table"), ("=", "not a TOML file"), (None, "No such file")],
)
def test_a_wrong_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    file = tmp_path / "up.toml"
    if text is not None:
        file.write_text(text)
    assert main.main(["up", "/models/pixtral", "--config", str(file)]) == 2
    assert f"{file}: {said}" in capsys.readouterr().err


def test_a_taken_port_is_an_error_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(FakeGateway()) as address:
        port = address.rpartition(":")[2]
        assert main.main(["up", str(tmp_path), "--port", port]) == 2
        refused = capsys.readouterr().err
        assert f"cannot listen at {address}: Address already in use; stop" in refused
        arguments = ["up", str(tmp_path), "--port", "0", "--listen", address]
        assert main.main(arguments) == 2
        assert "choose another: --listen" in capsys.readouterr().err


def test_each_decoder_has_gpus_of_its_own(
    started: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(up_options, "gpus_here", lambda: ["0", "1", "2", "3"])
    start("/models/pixtral", "--data-parallel-size", "2", "--tensor-parallel-size", "2")
    assert started["decoder_gpus"] == ["0,1", "2,3"]
    start("/models/pixtral", "--decoders", "2", "--decoder-gpus", "3", "1")
    assert started["decoder_gpus"] == ["3", "1"]
    for wrong in (["--decoders", "5"], ["--decoders", "2", "--decoder-gpus", "0"]):
        assert main.main(["up", "/models/pixtral", *wrong]) == 2
    assert "5 decoders of 1 GPUs need 5, and this machine has 4" in capsys.readouterr().err

    (tmp_path / "params.json").write_text("{}")
    stack = pixtral_stack(tmp_path, decoders=2, decoder_gpus=["0,1", "2,3"], encoder_gpus=["0"])
    encoder, first, second, gateway = stack._processes
    assert [each.environment for each in (encoder, first, second)] == [
        {"CUDA_VISIBLE_DEVICES": gpus} for gpus in ("0", "0,1", "2,3")
    ]
    assert gateway.connections == {
        "--encoders": ["encoder"],
        "--decoders": ["decoder", "decoder-2"],
    }


def test_the_gpus_are_those_that_the_environment_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "2,GPU-5f")
    assert up_options.gpus_here() == ["2", "GPU-5f"]


def test_gpus_are_numbered_as_cuda_does_whatever_their_device_files_are_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia3", "nvidia7", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert up_options.gpus_here(tmp_path) == ["0", "1"]
