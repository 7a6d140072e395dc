"""The part of kubectl that the pages use."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.cluster.pods import check_pods
from tests.support.cluster.state import Arguments, Fault, State, existing, pairs, set_variable
from tools import safe_yaml
from tools.deploy.objects import Object, name_of, pod_of

KINDS = {
    "deployment": "Deployment",
    "job": "Job",
    "secret": "Secret",
    "service": "Service",
}
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
CONDITIONS = {"Job": "complete", "Deployment": "Available"}


def kubectl(state: State, arguments: list[str]) -> None:
    """Runs kubectl with these arguments. Raises Fault."""
    verbs: dict[str, Callable[[State, list[str]], None]] = {
        "apply": _apply,
        "create": _create,
        "delete": _delete,
        "port-forward": _port_forward,
        "rollout": _rollout,
        "scale": _scale,
        "wait": _wait,
    }
    if not arguments or arguments[0] not in verbs:
        raise Fault(f"kubectl: the stand-in does not know {' '.join(arguments)!r}")
    verbs[arguments[0]](state, arguments[1:])


def _parser(verb: str) -> Arguments:
    parser = Arguments(f"kubectl {verb}")
    parser.add_argument("--namespace", "-n", default="default")
    return parser


def _named(state: State, namespace: str, text: str) -> Object:
    kind, slash, name = text.partition("/")
    if kind not in KINDS or not slash:
        raise Fault(f"{text} is not KIND/NAME")
    return state.get(namespace, KINDS[kind], name)


def _duration(text: str) -> str:
    if not re.fullmatch(r"(\d+h)?(\d+m)?(\d+s)?", text) or not text:
        raise Fault(f"{text!r} is not a duration")
    return text


def _apply(state: State, arguments: list[str]) -> None:
    parser = _parser("apply")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--filename", "-f")
    source.add_argument("--kustomize", "-k")
    options = parser.parse_args(arguments)
    if options.kustomize:
        objects = built(Path(options.kustomize))
    elif options.filename == "-":
        objects = list(safe_yaml.load_all(sys.stdin.read()))
    else:
        objects = list(safe_yaml.load_all(existing(options.filename).read_text()))
    if not objects:
        raise Fault("kubectl apply: no objects")
    for obj in objects:
        if obj["kind"] == "Namespace":
            state.make_namespace(name_of(obj))
    for obj in objects:
        namespace = obj["metadata"].get("namespace", options.namespace)
        if obj["kind"] == "Secret":
            _keep_entries(state, namespace, obj)
        if obj["kind"] != "Namespace":
            state.put(namespace, obj)


def _keep_entries(state: State, namespace: str, secret: Object) -> None:
    """`apply` keeps unknown entries of a Secret that `create` made."""
    before = state.find(namespace, "Secret", name_of(secret))
    if before is not None and _APPLIED not in before["metadata"].get("annotations", {}):
        secret["data"] = {**before.get("data", {}), **secret.get("data", {})}
    secret["metadata"].setdefault("annotations", {})[_APPLIED] = "true"


def built(directory: Path) -> list[Object]:
    """The objects of a kustomization, built by the real program once for each content."""
    if not (directory / "kustomization.yaml").is_file():
        raise Fault(f"{directory} has no kustomization.yaml")
    digest = hashlib.sha256(str(directory).encode())
    for file in sorted(Path("deploy").rglob("*")):
        if file.is_file():
            digest.update(f"{file}\0".encode() + file.read_bytes())
    cached = Path(set_variable("STAND_IN_CACHE")) / digest.hexdigest()
    if not cached.exists():
        command = [*json.loads(set_variable("STAND_IN_KUSTOMIZE")), str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Fault(done.stderr.strip())
        cached.write_text(done.stdout)
    return list(safe_yaml.load_all(cached.read_text()))


def _create(state: State, arguments: list[str]) -> None:
    if arguments[:1] == ["namespace"]:
        parser = _parser("create namespace")
        parser.add_argument("name")
        state.make_namespace(parser.parse_args(arguments[1:]).name)
        return
    parser = _parser("create secret generic")
    parser.add_argument("name")
    parser.add_argument("--from-literal", action="append", default=[])
    parser.add_argument("--from-file", action="append", default=[])
    parser.add_argument("--dry-run", choices=["client"])
    parser.add_argument("--output", "-o", choices=["yaml"])
    if arguments[:2] != ["secret", "generic"]:
        raise Fault(f"kubectl create {' '.join(arguments[:2])}: the stand-in does not know it")
    options = parser.parse_args(arguments[2:])
    entries = {name: value.encode() for name, value in pairs(options.from_literal)}
    for text in options.from_file:
        name, equals, path = text.partition("=")
        file = existing(path if equals else text)
        entries[name if equals else file.name] = file.read_bytes()
    if not entries or not all(entries.values()):
        raise Fault(f"the Secret {options.name} has no entries, or an empty one")
    secret: Object = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": options.name, "namespace": options.namespace},
        "data": {name: base64.b64encode(value).decode() for name, value in entries.items()},
    }
    if options.dry_run:
        # JSON is YAML.
        sys.stdout.write(json.dumps(secret))
        return
    if state.find(options.namespace, "Secret", options.name) is not None:
        raise Fault(f'secrets "{options.name}" already exists')
    state.put(options.namespace, secret)


def _delete(state: State, arguments: list[str]) -> None:
    parser = _parser("delete")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--ignore-not-found", action="store_true")
    options = parser.parse_args(arguments)
    for text in options.names:
        kind, _, name = text.partition("/")
        if not options.ignore_not_found:
            _named(state, options.namespace, text)
        if KINDS.get(kind) is None:
            raise Fault(f"{text} is not KIND/NAME")
        if state.find(options.namespace, KINDS[kind], name) is not None:
            state.delete(options.namespace, KINDS[kind], name)


def _port_forward(state: State, arguments: list[str]) -> None:
    parser = _parser("port-forward")
    parser.add_argument("name")
    parser.add_argument("ports", nargs="+")
    options = parser.parse_args(arguments)
    deployment = _named(state, options.namespace, options.name)
    check_pods(state, options.namespace)
    open_ports = {
        port["containerPort"]
        for container in pod_of(deployment)["containers"]
        for port in container.get("ports", ())
    }
    for text in options.ports:
        here, _, there = text.partition(":")
        if int(there or here) not in open_ports:
            raise Fault(f"{options.name} has no port {there or here}")
        state.forward(int(here))


def _rollout(state: State, arguments: list[str]) -> None:
    parser = _parser("rollout")
    parser.add_argument("verb", choices=["restart", "status", "undo"])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--timeout", type=_duration)
    options = parser.parse_args(arguments)
    for text in options.names:
        if _named(state, options.namespace, text)["kind"] != "Deployment":
            raise Fault(f"{text} has no rollout")
    check_pods(state, options.namespace)


def _scale(state: State, arguments: list[str]) -> None:
    parser = _parser("scale")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--replicas", type=int, required=True)
    options = parser.parse_args(arguments)
    for text in options.names:
        obj = _named(state, options.namespace, text)
        if obj["kind"] != "Deployment" or options.replicas < 0:
            raise Fault(f"{text} has no {options.replicas} replicas")
        obj["spec"]["replicas"] = options.replicas
        state.put(options.namespace, obj)


def _wait(state: State, arguments: list[str]) -> None:
    parser = _parser("wait")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--for", dest="condition", required=True)
    parser.add_argument("--timeout", type=_duration)
    options = parser.parse_args(arguments)
    for text in options.names:
        kind = _named(state, options.namespace, text)["kind"]
        if options.condition != f"condition={CONDITIONS.get(kind)}":
            raise Fault(f"{text} never has {options.condition}")
    check_pods(state, options.namespace)
