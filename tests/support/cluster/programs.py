"""Stand-ins for helm, docker, kind, curl, pixtral-serve and the control program of MPS."""

import base64
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.cluster.kubectl import kubectl
from tests.support.cluster.pods import check_pods
from tests.support.cluster.state import (
    Arguments,
    Fault,
    State,
    existing,
    pairs,
    secret_entries,
    set_variable,
)
from tools import safe_yaml

NAMESPACE = "pixtral"


def run(state: State, name: str, arguments: list[str]) -> None:
    """Runs the stand-in `name`. Raises Fault."""
    programs: dict[str, Callable[[State, list[str]], None]] = {
        "curl": _curl,
        "docker": _docker,
        "helm": _helm,
        "kind": _kind,
        "kubectl": kubectl,
        "nvidia-cuda-mps-control": _mps,
        "pixtral-serve": _pixtral_serve,
    }
    state.run(shlex.join([name, *arguments]))
    programs[name](state, arguments)


def _helm(state: State, arguments: list[str]) -> None:
    from tools.deploy.helm import CHART, ChartError, render

    parser = Arguments("helm")
    parser.add_argument("verb", choices=["install"])
    parser.add_argument("release")
    parser.add_argument("chart", type=Path)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--create-namespace", action="store_true")
    parser.add_argument("--values", "-f", action="append", default=[])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("--timeout")
    options = parser.parse_args(arguments)
    if not (options.chart / "Chart.yaml").is_file() or options.chart.name != CHART.name:
        raise Fault(f"{options.chart} is not a chart")
    values: dict[str, Any] = {}
    for file in options.values:
        values |= safe_yaml.load(existing(file).read_text()) or {}
    for name, value in pairs(options.set):
        *path, last = name.split(".")
        below = values
        for part in path:
            below = below.setdefault(part, {})
        below[last] = {"true": True, "false": False}.get(value, value)
    if options.create_namespace:
        state.make_namespace(options.namespace)
    try:
        objects = render(values, release=options.release, namespace=options.namespace)
    except ChartError as error:
        raise Fault(f"helm: {error}") from None
    for obj in objects:
        state.put(options.namespace, obj)
    if options.wait:
        check_pods(state, options.namespace)


def _docker(state: State, arguments: list[str]) -> None:
    verbs = {"build": _build, "compose": _compose, "push": _push, "run": _run}
    if not arguments or arguments[0] not in verbs:
        raise Fault(f"docker: the stand-in does not know {' '.join(arguments)!r}")
    verbs[arguments[0]](state, arguments[1:])


def _build(state: State, arguments: list[str]) -> None:
    parser = Arguments("docker build")
    parser.add_argument("context", type=Path)
    parser.add_argument("--file", "-f", required=True)
    parser.add_argument("--tag", "-t", required=True)
    parser.add_argument("--build-arg", action="append", default=[])
    parser.add_argument("--label", action="append", default=[])
    options = parser.parse_args(arguments)
    text = existing(options.file).read_text()
    if not options.context.is_dir():
        raise Fault(f"there is no folder {options.context}")
    for name, _ in pairs(options.build_arg):
        if not re.search(rf"^ARG {re.escape(name)}\b", text, re.MULTILINE):
            raise Fault(f"{options.file} has no ARG {name}")
    if not re.fullmatch(r"([a-z0-9.-]+(:\d+)?/)?[a-z0-9/-]+:[\w.-]+", options.tag):
        raise Fault(f"{options.tag} is not an image")
    state.image(options.tag, "built")


def _push(state: State, arguments: list[str]) -> None:
    parser = Arguments("docker push")
    parser.add_argument("image")
    image = parser.parse_args(arguments).image
    if not state.has_image(image, "built"):
        raise Fault(f"nobody built the image {image}")
    state.image(image, "pushed")


def _run(state: State, arguments: list[str]) -> None:
    """Runs the project's own command line, as the image does. Raises Fault for other programs."""
    from pixtral_cli.main import main

    parser = Arguments("docker run")
    parser.add_argument("image")
    parser.add_argument("command", nargs="*")
    parser.add_argument("--rm", action="store_true")
    parser.add_argument("--entrypoint", choices=["pixtral-serve"], required=True)
    options = parser.parse_args(arguments)
    if not state.has_image(options.image, "built"):
        raise Fault(f"nobody built the image {options.image}")
    if main(options.command):
        raise Fault(f"pixtral-serve {shlex.join(options.command)} fails")


def _compose(state: State, arguments: list[str]) -> None:
    parser = Arguments("docker compose")
    parser.add_argument("--file", "-f", required=True)
    parser.add_argument("verb", choices=["up"])
    parser.add_argument("--build", action="store_true")
    options = parser.parse_args(arguments)
    text = existing(options.file).read_text()
    for name in re.findall(r"\$\{(\w+):\?", text):
        set_variable(name)
    folder = Path(options.file).parent
    for service in safe_yaml.load(text)["services"].values():
        build = service.get("build")
        if build and not (folder / build["context"] / build["dockerfile"]).is_file():
            raise Fault(f"there is no {build['dockerfile']}")
        for port in service.get("ports", ()):
            state.forward(int(port.split(":")[1]))


def _kind(state: State, arguments: list[str]) -> None:
    if arguments == ["create", "cluster"]:
        return
    if arguments[:2] != ["load", "docker-image"] or not arguments[2:]:
        raise Fault(f"kind: the stand-in does not know {' '.join(arguments)!r}")
    for image in arguments[2:]:
        if not state.has_image(image, "built"):
            raise Fault(f"nobody built the image {image}")
        state.image(image, "loaded")


def _mps(state: State, arguments: list[str]) -> None:
    del state
    if arguments != ["-d"] and (arguments or sys.stdin.read().strip() != "quit"):
        raise Fault("nvidia-cuda-mps-control starts with -d and ends with quit")


def _pixtral_serve(state: State, arguments: list[str]) -> None:
    """Checks `up` and `chat`; the real command line parses their arguments."""
    from pixtral_cli.main import make_parser
    from pixtral_cli.plain_output import WrongArgument

    try:
        options = make_parser().parse_args(arguments)
    except (SystemExit, WrongArgument) as error:
        raise Fault(f"pixtral-serve {shlex.join(arguments)}: {error}") from None
    if arguments[0] == "up":
        if not arguments[1:] or not arguments[1]:
            raise Fault("pixtral-serve up names no model")
        return
    if arguments[0] != "chat":
        raise Fault(f"the stand-in does not know pixtral-serve {arguments[0]}")
    for image in options.image:
        existing(image)
    host, _, port = options.target.rpartition(":")
    state.await_port(int(port))
    _check_door(state, host, options.tls_ca, os.environ.get("PIXTRAL_API_KEY", ""))


def _curl(state: State, arguments: list[str]) -> None:
    parser = Arguments("curl")
    parser.add_argument("url")
    parser.add_argument("--cacert", type=Path)
    parser.add_argument("--header", "-H", action="append", default=[])
    parser.add_argument("--data", "-d")
    options = parser.parse_args(arguments)
    url = urlsplit(options.url)
    headers = {name.strip().lower(): value.strip() for name, value in _headers(options.header)}
    state.await_port(url.port or 0)
    if (url.scheme == "https") != (options.cacert is not None):
        raise Fault(f"{options.url}: --cacert belongs to https, and https needs it")
    key = headers.get("authorization", "").removeprefix("Bearer ")
    _check_door(state, url.hostname or "", options.cacert, key)
    if options.data is None:
        if url.path != "/v1/models":
            raise Fault(f"{url.path} does not accept GET")
        return
    text = sys.stdin.read() if options.data == "@-" else options.data
    _check_request(state, url.path, headers.get("content-type", ""), text)


def _headers(lines: list[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (line.partition(":") for line in lines)]


def _check_request(state: State, path: str, kind: str, text: str) -> None:
    from pixtral_gateway.api.openai.request_schema import ChatRequest

    if path != "/v1/chat/completions" or kind != "application/json":
        raise Fault(f"{path} does not accept {kind}")
    try:
        body = json.loads(text)
        ChatRequest.model_validate(body)
    except ValueError as error:
        raise Fault(f"the gateway refuses the body: {error}") from None
    models = [
        each["data"]["PIXTRAL_MODEL"]
        for each in state.objects(NAMESPACE)
        if each["kind"] == "ConfigMap" and "PIXTRAL_MODEL" in each["data"]
    ]
    if [body.get("model")] != models:
        raise Fault(f"the gateway serves {models}, not {body.get('model')}")
    for part in body["messages"][0]["content"]:
        url = part.get("image_url", {}).get("url")
        if url is not None:
            image = base64.b64decode(url.partition("base64,")[2], validate=True)
            if not image.startswith(b"\xff\xd8\xff"):
                raise Fault("the image is not a JPEG")


def _check_door(state: State, host: str, authority: Path | None, key: str) -> None:
    """Raises Fault if the gateway of this state would reject the client."""
    from pixtral_core.errors import StartupError, Unauthenticated
    from pixtral_gateway.tenancy.tenants import Tenants
    from tests.support.cluster.tls import shake_hands

    certificate = state.find(NAMESPACE, "Secret", "gateway-tls")
    if (authority is not None) != (certificate is not None):
        raise Fault("only one of client and gateway uses TLS")
    if certificate is not None and authority is not None:
        trusted = existing(str(authority)).read_bytes()
        shake_hands(secret_entries(certificate), {"ca.crt": trusted}, host, is_mutual=False)
    keys = state.find(NAMESPACE, "Secret", "api-keys")
    if keys is None:
        return
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "tenants.toml"
        file.write_bytes(secret_entries(keys)["tenants.toml"])
        try:
            Tenants(file).of(f"Bearer {key}")
        except (StartupError, Unauthenticated) as error:
            raise Fault(f"the gateway's keys: {error}") from None
