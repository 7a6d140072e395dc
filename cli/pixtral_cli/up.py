"""`pixtral-serve up`: a local stack until Ctrl-C."""

import argparse
import shlex
import signal

from pixtral_cli.stack.pixtral_stack import pixtral_stack
from pixtral_cli.stack.process_stack import Stack
from pixtral_cli.terminal import console, start_progress
from pixtral_client.requests import DEFAULT_TARGET, is_loopback


def run_up(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.no_page:
        options.gateway_args += " --no-page"
    if options.served_model_name:
        names = shlex.quote(",".join(options.served_model_name))
        options.gateway_args += f" --served-model-name={names}"
    if options.image_urls:
        hosts = shlex.quote(",".join(options.image_urls))
        options.gateway_args += f" --image-url-hosts={hosts}"
    stack = start_stack(options, listen=options.listen, http_listen=options.http_listen)
    try:
        console.print(f"\n[green]ready[/] at [bold]{stack.target}[/]; logs are in {stack.log_dir}")
        if not options.no_page and is_loopback(options.http_listen.rpartition(":")[0]):
            console.print(f"  a page to try it on at http://{stack.http_target}/")
        console.print(f"  OpenAI's API at http://{stack.http_target}/v1")
        at = "" if stack.target == DEFAULT_TARGET else f" --target {stack.target}"
        console.print(f'  pixtral-serve chat{at} --image cat.jpg "What is this?"')
        console.print(f"  pixtral-serve chat{at}")
        console.print("Ctrl-C stops it all.")
        stack.wait(_print_warning)
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        stack.close()
    return 0


def _print_warning(name: str, message: str) -> None:
    console.print(f"{name}: {message}", style="yellow", markup=False)


def start_stack(options: argparse.Namespace, *, listen: str, http_listen: str | None) -> Stack:
    """Starts the stack that the options of `up` and `demo` describe, and shows its progress."""
    quantization = [] if options.quantization is None else ["--quantization", options.quantization]
    with start_progress() as progress:
        stack = pixtral_stack(
            options.model_dir,
            dtype=options.dtype,
            listen=listen,
            http_listen=http_listen,
            redis_max_memory=options.redis_max_memory,
            encoder_args=shlex.split(options.encoder_args),
            decoder_args=[*quantization, *shlex.split(options.decoder_args)],
            gateway_args=shlex.split(options.gateway_args),
            log_dir=options.log_dir,
            progress=progress,
        )
        stack.start()
    return stack
