"""`pixtral-serve up`: runs a local stack until Ctrl-C."""

import argparse
import os
import re
import shlex
import signal
import urllib.request
from urllib.parse import urlsplit

from pixtral_cli.hub.model_argument import model_directory
from pixtral_cli.plain_output import WrongArgument
from pixtral_cli.stack.pixtral_stack import pixtral_stack
from pixtral_cli.stack.process_stack import Stack
from pixtral_cli.terminal import console, start_progress
from pixtral_cli.up_options import check_ports, remove_key_file, settle
from pixtral_client import Client, Model
from pixtral_client.requests import DEFAULT_TARGET, is_loopback

PERMITS = "pixtral_gateway_permits_limit"
BLOCKS = "vllm:cache_config_info{"


def run_up(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options.model_dir = options.model or options.model_dir
    if options.model_dir is None:
        raise WrongArgument("which model? pixtral-serve up MODEL, a directory or a repository's id")
    settle(options)
    try:
        check_ports({"--port": options.http_listen, "--listen": options.listen})
        stack = start_stack(options, listen=options.listen, http_listen=options.http_listen)
        return _serve(options, stack)
    finally:
        remove_key_file(options.gateway_args)


def _serve(options: argparse.Namespace, stack: Stack) -> int:
    try:
        for name, text in summary(options, stack):
            console.print(f"  [bold]{name:<13}[/] ", end="")
            console.print(text, markup=False)
        at = "" if stack.target == DEFAULT_TARGET else f" --target {stack.target}"
        console.print(f'pixtral-serve chat{at} "What is this?" cat.jpg', markup=False)
        console.print("Ctrl-C stops it all.")
        stack.wait(_print_warning)
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        stack.close()
    return 0


def summary(options: argparse.Namespace, stack: Stack) -> list[tuple[str, str]]:
    """The names and values that `up` prints about a stack that is ready."""
    http = stack.http_target
    lines = [("ready", f"logs are in {stack.log_dir}"), ("OpenAI's API", f"http://{http}/v1")]
    lines.append(("gRPC", stack.target))
    if not options.no_page and is_loopback(options.http_listen.rpartition(":")[0]):
        lines.append(("page", f"http://{http}/"))
    lines += [
        ("metrics", f"{name} http://{addresses.metrics}/metrics")
        for name, addresses in reversed(stack.addresses.items())
    ]
    key = options.api_key[0] if options.api_key else None
    with Client(stack.target, api_key=key, timeout=30) as client:
        models = client.models()
    lines += [("model", _describe(model)) for model in models]
    if permits := re.search(rf"^{PERMITS} (\S+)", _metrics(stack, "gateway"), re.MULTILINE):
        lines.append(("at once", f"{float(permits[1]):.0f} answers; more are refused"))
    if room := _room(stack, models[0].context_length):
        lines.append(("keys, values", room))
    lines.append(("Redis", _redis(options)))
    return lines


def _describe(model: Model) -> str:
    megabytes = model.max_image_bytes / 1e6
    return (
        f"{model.name}: {model.context_length} tokens of context, up to {model.max_images} images "
        f"of {megabytes:.0f} MB"
    )


def _room(stack: Stack, context_length: int) -> str | None:
    """A text with the number of tokens whose keys and values fit in the memory of all decoders."""
    total = 0
    for name in stack.addresses:
        if name.startswith("decoder"):
            for line in _metrics(stack, name).splitlines():
                if line.startswith(BLOCKS):
                    facts = dict(re.findall(r'(\w+)="(\d+)"', line))
                    total += int(facts.get("block_size", 0)) * int(facts.get("num_gpu_blocks", 0))
    if not total:
        return None
    return f"memory for {total} tokens, {total / context_length:.1f} times the whole context"


def _redis(options: argparse.Namespace) -> str:
    url = os.environ.get("PIXTRAL_REDIS_URL")
    if not url:
        return f"started here, for {options.redis_max_memory} of image embeddings"
    import redis

    parts = urlsplit(url)
    where = f"{parts.hostname or parts.path}:{parts.port or 6379}"
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=3.0, socket_timeout=3.0) as client:
            client.ping()
    except (redis.RedisError, OSError):
        return (
            f"{where} does not answer: images are encoded again each time that an encoder and a "
            "decoder have forgotten them"
        )
    return f"{where} answers"


def _metrics(stack: Stack, name: str) -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://{stack.addresses[name].metrics}/metrics", timeout=10) as response:
        text: str = response.read().decode()
    return text


def _print_warning(name: str, message: str) -> None:
    console.print(f"{name}: {message}", style="yellow", markup=False)


def start_stack(options: argparse.Namespace, *, listen: str, http_listen: str | None) -> Stack:
    """Starts the stack that the options of `up` or `demo` describe, and shows its progress. If the
    model is a repository's id that is not in the cache, fetches the model first."""
    model_dir = model_directory(options.model_dir, options.revision)
    with start_progress() as progress:
        stack = pixtral_stack(
            model_dir,
            dtype=options.dtype,
            listen=listen,
            http_listen=http_listen,
            redis_max_memory=options.redis_max_memory,
            encoder_args=shlex.split(options.encoder_args),
            decoder_args=shlex.split(options.decoder_args),
            gateway_args=shlex.split(options.gateway_args),
            encoders=getattr(options, "encoders", 1),
            decoders=getattr(options, "data_parallel_size", 1),
            encoder_gpus=getattr(options, "encoder_gpus", None) or (),
            decoder_gpus=getattr(options, "decoder_gpus", None) or (),
            log_dir=options.log_dir,
            progress=progress,
        )
        stack.start()
    return stack
