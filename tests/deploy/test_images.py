"""The images: what they say about themselves, and on which bases they are built."""

import re
import subprocess

import pytest

from tools.deploy.images import FOLDERS, dockerfiles
from tools.deploy.manifests import ROOT

DIGEST = "registry.example.com/base@sha256:" + "0" * 64
LABEL = "org.opencontainers.image"


@pytest.mark.parametrize("tier", FOLDERS)
def test_an_image_names_itself_its_licence_and_its_base(tier: str) -> None:
    last_stage = dockerfiles()[tier].rpartition("\nFROM ")[2]
    labels = dict(re.findall(rf'{LABEL}\.([\w.]+)="([^"]*)"', last_stage))
    base = "VLLM_IMAGE" if tier == "decoder" else "PYTHON_IMAGE"

    assert labels["title"] == f"pixtral-{tier}"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["base.name"] == f"${{{base}}}"
    # Without this line the argument has no value in the stage.
    assert f"\nARG {base}\n" in last_stage


def commands(*variables: str) -> str:
    planned = subprocess.run(
        ["make", "--dry-run", "images", "REGISTRY=registry.example.com", *variables],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return planned.stdout


def test_bases_are_the_dockerfiles_own_unless_a_setting_names_others() -> None:
    assert "--build-arg" not in commands()
    others = commands(f"PYTHON_IMAGE={DIGEST}", "VLLM_IMAGE=vllm:cpu")

    for folder in ("gateway", "services/encoder"):
        assert f"build {folder} --build-arg PYTHON_IMAGE={DIGEST}" in others
    assert "build services/decoder --build-arg VLLM_IMAGE=vllm:cpu" in others


def test_an_image_is_labelled_with_its_version() -> None:
    assert f"--label {LABEL}.version=7.0" in commands("TAG=7.0")
