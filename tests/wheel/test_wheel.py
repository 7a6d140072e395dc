"""The wheel works alone and with each extra alone, and takes no import name of anybody else."""

import re
import sys
import tomllib
from collections.abc import Sequence
from email import message_from_string
from pathlib import Path

import pytest

from tests.wheel.environment import ROOT, Environment, run

pytestmark = pytest.mark.timeout(900)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TIERS = ("gateway", "encoder", "decoder")
PACKAGES = {
    *("pixtral", "pixtral_cli", "pixtral_client", "pixtral_core"),
    *(f"pixtral_{tier}" for tier in TIERS),
}
# The packages that each environment must be able to import, whole.
IMPORTABLE = {
    "base": ("pixtral", "pixtral_client", "pixtral_cli"),
    "cli": ("pixtral", "pixtral_client", "pixtral_cli"),
    "gateway": ("pixtral", "pixtral_client", "pixtral_cli", "pixtral_core", "pixtral_gateway"),
    "encoder": ("pixtral", "pixtral_client", "pixtral_cli", "pixtral_core", "pixtral_encoder"),
}
# Modules that only a command with the extra `cli` imports: they need rich or prompt_toolkit.
WITH_RICH = {
    f"pixtral_cli.{name}"
    for name in ("chat", "demo", "line_editor", "markdown_stream", "terminal", "up")
}
# Triton comes with PyTorch's build for CUDA alone.
ON_A_GPU = {"pixtral_encoder.tower.gated_mlp_kernel"}
# Names that applications have for folders of their own.
COMMON_FOLDERS = ("services", "models", "gateway", "serving", "embeddings", "core", "client")

IMPORT_ALL = """
import importlib, pkgutil

def stop(name):
    raise

for root in {packages}:
    package = importlib.import_module(root)
    assert all(path.startswith({installed_in!r}) for path in package.__path__), package
    for module in pkgutil.walk_packages(package.__path__, root + ".", onerror=stop):
        if not module.name.endswith("__main__") and module.name not in {left_out}:
            importlib.import_module(module.name)
"""


def import_all(packages: Sequence[str], installed_in: Path, left_out: set[str]) -> str:
    return IMPORT_ALL.format(packages=packages, installed_in=str(installed_in), left_out=left_out)


def test_wheel_holds_our_packages_alone(unpacked: Path) -> None:
    names = {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"}

    assert names == PACKAGES


def test_wheel_holds_what_is_not_python(unpacked: Path) -> None:
    for package in PACKAGES - {"pixtral"}:
        assert (unpacked / package / "py.typed").is_file()
    page = Path("pixtral_gateway", "api", "playground", "static")
    assert _files(unpacked / page) == _files(ROOT / "gateway" / page)
    assert list(unpacked.glob("pixtral/**/*.proto"))
    assert list(unpacked.glob("pixtral/**/*.pyi"))


def _files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_metadata_names_the_sdk_s_needs_and_the_extras(unpacked: Path) -> None:
    (file,) = unpacked.glob("*.dist-info/METADATA")
    metadata = message_from_string(file.read_text("utf-8"))
    needs = metadata.get_all("Requires-Dist", [])

    assert {re.split(r"[<>=]", line)[0] for line in needs if "extra ==" not in line} == {
        *("grpcio", "grpcio-status", "protobuf", "googleapis-common-protos")
    }
    assert set(metadata.get_all("Provides-Extra", [])) == {
        *("cli", "core", "gateway", "encoder", "decoder", "decoder-cpu")
    }


def test_every_module_imports(environment: Environment, tmp_path: Path) -> None:
    left_out = ON_A_GPU if environment.extra == "cli" else ON_A_GPU | WITH_RICH

    packages = IMPORTABLE[environment.extra]
    environment.python(import_all(packages, environment.folder, left_out), cwd=tmp_path)


def test_the_sdk_and_the_command_say_one_version(environment: Environment, tmp_path: Path) -> None:
    printed = environment.run("pixtral-serve", "--version", cwd=tmp_path).stdout
    code = "import pixtral_client; print(pixtral_client.__version__)"

    assert printed == f"pixtral-serve {PROJECT['version']}\n"
    assert environment.python(code, cwd=tmp_path) == f"{PROJECT['version']}\n"


@pytest.mark.parametrize("command", [[], ["up"], ["chat"]])
def test_help(environment: Environment, command: list[str], tmp_path: Path) -> None:
    done = environment.run("pixtral-serve", *command, "--help", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(" ".join(["usage: pixtral-serve", *command]))


@pytest.mark.parametrize("tier", TIERS)
def test_help_of_a_tier_or_the_extra_that_it_needs(
    environment: Environment, tier: str, tmp_path: Path
) -> None:
    done = environment.run("pixtral-serve", tier, "--help", cwd=tmp_path)

    if tier == environment.extra:
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: pixtral-serve {tier}")
        assert "--model-dir" in done.stdout
    else:
        assert_names_the_extra(done.stderr, tier)
        assert (done.returncode, done.stdout) == (1, "")


def test_a_question_is_asked_or_the_extra_is_named(
    environment: Environment, tmp_path: Path
) -> None:
    arguments = ("chat", "--target", "127.0.0.1:1", "Hello?")
    done = environment.run("pixtral-serve", *arguments, cwd=tmp_path)

    assert done.returncode == 1
    if environment.extra == "cli":
        assert "Is a gateway running there?" in done.stderr
    else:
        assert_names_the_extra(done.stderr, "cli")


def assert_names_the_extra(printed: str, extra: str) -> None:
    (line,) = printed.splitlines()
    assert f"pip install 'pixtral-serve[{extra}]'" in line


def test_key(environment: Environment, tmp_path: Path) -> None:
    done = environment.run("pixtral-serve", "key", cwd=tmp_path)

    assert done.returncode == 0
    assert re.fullmatch(
        r"PIXTRAL_API_KEY=pixtral-[\w-]{43}\nkeys = \[\"sha256:[0-9a-f]{64}\"\]\n", done.stdout
    )


def test_doctor_names_the_extras_that_are_missing(environment: Environment, tmp_path: Path) -> None:
    done = environment.run("pixtral-serve", "doctor", cwd=tmp_path)

    assert done.stderr == ""
    assert re.search(r"^ok +Python 3", done.stdout, re.MULTILINE)
    for extra in ("cli", *TIERS):
        if extra == environment.extra:
            assert f"{extra}: its packages are installed" in done.stdout
        else:
            assert f"-> pip install 'pixtral-serve[{extra}]'" in done.stdout


def test_a_local_stack_names_the_extra_or_looks_for_the_model(
    environment: Environment, tmp_path: Path
) -> None:
    code = """
import pixtral_cli
try:
    with pixtral_cli.local("no-model-here"):
        pass
except (ImportError, FileNotFoundError) as error:
    print(type(error).__name__)
"""
    expected = "FileNotFoundError" if environment.extra == "cli" else "MissingExtra"

    assert environment.python(code, cwd=tmp_path) == f"{expected}\n"


def test_an_application_keeps_its_own_folders(environment: Environment, tmp_path: Path) -> None:
    # Packages without an __init__.py, which any installed package of the name would hide.
    for name in COMMON_FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text("")
    imports = ", ".join(f"{name}.mine" for name in COMMON_FOLDERS)
    (tmp_path / "application.py").write_text(
        f"import pixtral_client, pixtral_cli\nimport {imports}"
    )

    done = environment.run("python", "application.py", cwd=tmp_path)

    assert done.returncode == 0, done.stderr


def test_the_decoder_imports_beside_the_project_s_own_vllm(unpacked: Path, tmp_path: Path) -> None:
    # Imported, this module watches for the end of its parent process.
    left_out = {"pixtral_decoder.main"}
    code = import_all(("pixtral_core", "pixtral_decoder"), unpacked, left_out)
    done = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(unpacked))
    assert done.returncode == 0, done.stderr

    command = [sys.executable, "-m", "pixtral_decoder", "--help"]
    done = run(command, tmp_path, PYTHONPATH=str(unpacked))
    assert done.stdout.startswith("usage: pixtral-serve decoder")
