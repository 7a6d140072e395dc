"""The flags of `pixtral-serve up`, with vLLM's names where the meaning is the same."""

import argparse
import hashlib
import json
import os
import re
import shlex
import socket
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixtral_cli.plain_output import WrongArgument

TIERS = ("gateway", "encoder", "decoder")
_KEY_FILE = "pixtral-keys-"
_UNITS = {"": 1, "k": 1000, "K": 1 << 10, "m": 10**6, "M": 1 << 20}


def add_vllm_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `vllm serve` also has. docs/from-vllm.md has a table of them."""
    group = parser.add_argument_group("as vllm serve has them")
    group.add_argument(
        "--host", help="address of the HTTP API; 0.0.0.0 lets other machines reach it"
    )
    group.add_argument("--port", type=int, help="port of the HTTP API")
    group.add_argument("--revision", help="branch, tag or commit of the model's repository (main)")
    group.add_argument(
        "--max-model-len",
        type=tokens,
        metavar="TOKENS",
        help="most tokens of prompt and answer together, such as 32768 or 32k",
    )
    group.add_argument(
        "--gpu-memory-utilization",
        type=float,
        metavar="SHARE",
        help="share of its GPUs' memory that each decoder uses",
    )
    group.add_argument(
        "--api-key",
        nargs="+",
        default=[],
        metavar="KEY",
        help="API keys; each request needs one of them",
    )
    group.add_argument(
        *("--quantization", "-q"),
        metavar="METHOD",
        help="quantise the language model's weights at load: fp8 on a GPU, or "
        "int8_per_channel_weight_only, which works on a CPU, too",
    )
    group.add_argument(
        "--limit-mm-per-prompt",
        type=images_of,
        metavar="JSON",
        help='most images in one prompt: {"image": 4} or image=4',
    )
    group.add_argument(
        *("--tensor-parallel-size", "-tp"),
        type=int,
        default=1,
        metavar="GPUS",
        help="GPUs of each decoder (%(default)s)",
    )
    group.add_argument(
        *("--data-parallel-size", "-dp", "--decoders"),
        type=int,
        default=1,
        metavar="COUNT",
        help="decoders to start, each with its own GPUs (%(default)s)",
    )


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encoders", type=int, default=1, metavar="COUNT", help="encoders to start (%(default)s)"
    )
    parser.add_argument(
        "--encoder-gpus", nargs="+", metavar="GPUS", help="GPU of each encoder, such as 0"
    )
    parser.add_argument(
        "--decoder-gpus",
        nargs="+",
        metavar="GPUS",
        help="GPUs of each decoder, such as 0,1 2,3 for two decoders",
    )


def tokens(text: str) -> int:
    """A count as vLLM reads it: `32k` is 32000, `32K` 32768."""
    found = re.fullmatch(r"(\d+)([kKmM]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is not a number of tokens, such as 32768 or 32K")
    return int(found[1]) * _UNITS[found[2]]


def images_of(text: str) -> int:
    """The number of images in a value of `--limit-mm-per-prompt`."""
    try:
        limits = json.loads(text) if text.startswith("{") else dict([text.split("=")])
        images = limits["image"]
        return int(images["count"] if isinstance(images, dict) else images)
    except (ValueError, KeyError, TypeError):
        raise argparse.ArgumentTypeError("""must be {"image": COUNT} or image=COUNT""") from None


def settle(options: argparse.Namespace) -> None:
    """Turns the flags that are settings of a tier into flags of that tier. They come before those
    of `--gateway-args` and `--decoder-args`, which can override them.

    Raises WrongArgument if they contradict each other.
    """
    gateway: list[str] = []
    decoder: list[str] = []
    if options.no_page:
        gateway.append("--no-page")
    if options.served_model_name:
        gateway.append(f"--served-model-name={','.join(options.served_model_name)}")
    if options.image_urls:
        gateway.append(f"--image-url-hosts={','.join(options.image_urls)}")
    if options.api_key:
        gateway.append(f"--api-keys={_key_file(options.api_key)}")
    if options.limit_mm_per_prompt is not None:
        gateway.append(f"--max-images={options.limit_mm_per_prompt}")
        decoder.append(f"--max-images={options.limit_mm_per_prompt}")
    if options.max_model_len is not None:
        decoder.append(f"--context-length={options.max_model_len}")
    if options.gpu_memory_utilization is not None:
        decoder.append(f"--gpu-memory-fraction={options.gpu_memory_utilization}")
    if options.quantization:
        decoder.append(f"--quantization={options.quantization}")
    if options.tensor_parallel_size != 1:
        decoder.append(f"--tensor-parallel={options.tensor_parallel_size}")
    options.gateway_args = f"{shlex.join(gateway)} {options.gateway_args}".strip()
    options.decoder_args = f"{shlex.join(decoder)} {options.decoder_args}".strip()
    host, _, port = options.http_listen.rpartition(":")
    if options.host is not None:
        host = f"[{options.host}]" if ":" in options.host else options.host
    options.http_listen = f"{host}:{port if options.port is None else options.port}"
    _settle_gpus(options)


def _settle_gpus(options: argparse.Namespace) -> None:
    for tier, count in (("encoder", options.encoders), ("decoder", options.data_parallel_size)):
        if count < 1:
            raise WrongArgument(f"at least one {tier} must run")
        given = getattr(options, f"{tier}_gpus")
        if given and len(given) != count:
            raise WrongArgument(f"--{tier}-gpus names GPUs for {len(given)}, and {count} start")
    several = options.encoders + options.data_parallel_size > 2
    if several and not options.decoder_gpus and (gpus := gpus_here()):
        size = options.tensor_parallel_size
        needed = size * options.data_parallel_size
        if needed > len(gpus):
            raise WrongArgument(
                f"{options.data_parallel_size} decoders of {size} GPUs need {needed}, and this "
                f"machine has {len(gpus)}: name them by --decoder-gpus, or start fewer"
            )
        options.decoder_gpus = [",".join(gpus[at : at + size]) for at in range(0, needed, size)]


def gpus_here(devices: Path = Path("/dev")) -> list[str]:
    """The GPUs that a process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [each for each in named.split(",") if each]
    # In a container with some GPUs, the device files have the numbers of the machine, but CUDA
    # counts from 0. So only the number of files is used.
    return [str(number) for number, _ in enumerate(devices.glob("nvidia[0-9]*"))]


def check_ports(addresses: Mapping[str, str | None]) -> None:
    """Tries to listen on each address before anything starts. An error names the flag that changes
    the address.

    Raises WrongArgument.
    """
    for flag, address in addresses.items():
        if address is None:
            continue
        host, _, port = address.rpartition(":")
        try:
            with socket.create_server(
                (host.strip("[]"), int(port)),
                family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            ):
                pass
        except (OSError, ValueError, OverflowError) as error:
            raise WrongArgument(
                f"cannot listen at {address}: {why_not_listening(error)}; stop the process "
                f"that listens there, or choose another: {flag}"
            ) from None


def why_not_listening(error: Exception) -> str:
    """Why `socket.create_server` failed, without the address, which it repeats as a tuple."""
    return str(getattr(error, "strerror", None) or error).partition(" (while ")[0]


def flags_of_file(path: Path) -> dict[str, list[str]]:
    """The flags of `up` for each name in a TOML file.

    The top level of the file contains `model` and the flags of `up`. The tables `gateway`,
    `encoder` and `decoder` contain settings of these tiers. Raises WrongArgument.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise WrongArgument(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise WrongArgument(f"{path}: not a TOML file: {error}") from None
    flags: dict[str, list[str]] = {}
    for name, value in table.items():
        flag = f"--{name.replace('_', '-')}"
        if name in TIERS:
            if not isinstance(value, dict):
                raise WrongArgument(f"{path}: {name} must be a table of its settings")
            flags[name] = [f"--{name}-args={shlex.join(_tier_flags(value))}"]
        elif name == "model":
            flags[name] = [f"--model-dir={value}"]
        elif isinstance(value, bool):
            flags[name] = [flag] if value else []
        elif isinstance(value, list):
            flags[name] = [flag, *map(str, value)]
        else:
            flags[name] = [f"{flag}={json.dumps(value) if isinstance(value, dict) else value}"]
    return flags


def _tier_flags(settings: Mapping[str, Any]) -> list[str]:
    flags = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list):
            flags.append(f"{flag}={','.join(map(str, value))}")
        elif isinstance(value, dict):
            flags += [
                f"{flag}={key}={json.dumps(each) if not isinstance(each, str) else each}"
                for key, each in value.items()
            ]
        else:
            flags.append(f"{flag}={value}")
    return flags


def _key_file(keys: Sequence[str]) -> Path:
    """Writes a file of API keys with one tenant. It contains only the digests of the keys."""
    digests = [f"sha256:{hashlib.sha256(key.encode()).hexdigest()}" for key in keys]
    handle, name = tempfile.mkstemp(prefix=_KEY_FILE, suffix=".toml")
    with os.fdopen(handle, "w") as file:
        file.write(f"[api-key]\nkeys = {json.dumps(digests)}\n")
    return Path(name)


def remove_key_file(gateway_args: str) -> None:
    """Removes the file that `settle` made for `--api-key`."""
    for flag in shlex.split(gateway_args):
        path = Path(flag.removeprefix("--api-keys="))
        if flag.startswith("--api-keys=") and path.name.startswith(_KEY_FILE):
            path.unlink(missing_ok=True)
