"""The command line, `pixtral-serve`.

`--help`, `--version`, `key` and `doctor` need only the base installation, and `pull` needs only
huggingface_hub in addition. The other commands import the packages of their extra when they run.
"""

import argparse
import hashlib
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pixtral_cli.doctor import run_doctor
from pixtral_cli.extras import MissingExtra, require_extra
from pixtral_cli.hub.failures import PullError
from pixtral_cli.hub.pull import run_pull
from pixtral_cli.plain_output import WrongArgument, print_error, print_line
from pixtral_cli.plan import add_plan_arguments, run_plan
from pixtral_cli.stack.process_stack import StackError
from pixtral_cli.up_options import add_device_flags, add_vllm_flags, flags_of_file
from pixtral_client import __version__
from pixtral_client.errors import PixtralError
from pixtral_client.requests import DEFAULT_HTTP, DEFAULT_TARGET

CHAT_EXIT_CODES = (
    "exit codes: 0: the answer is whole. 1: no answer, because the gateway refused or is "
    "unreachable, or the answer broke off. 2: the arguments are wrong or an image does not exist, "
    "and nothing was sent. 3: --max-tokens or the model's context cut the answer. 130: Ctrl-C. "
    "Several questions on standard input end with the smallest code among 1, 2 and 3 that "
    "occurred."
)
MODEL_HELP = (
    "the model: a directory, or a repository's id such as mistralai/Pixtral-12B-2409, which is "
    "fetched if Hugging Face's cache does not have it"
)
REVISION_HELP = "branch, tag or commit of the repository (main)"
TIERS = ("gateway", "encoder", "decoder")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 for success, 1 for a failure, 2 for wrong
    arguments. `pixtral-serve chat --help` lists the exit codes of `chat`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in TIERS:
            _become_tier(arguments[0], arguments[1:])
        options = _parse(arguments)
        return int(options.run(options))
    except WrongArgument as error:
        print_error(error)
        return 2
    except (
        *(MissingExtra, PixtralError, PullError, StackError),
        *(OSError, ValueError, TypeError),
    ) as error:
        print_error(error)
        return 1
    except KeyboardInterrupt:
        return 130


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command line. For `up`, they override those in the file of `--config`.
    Raises WrongArgument."""
    parser = make_parser()
    arguments = _joined(arguments)
    options = parser.parse_args(arguments)
    if getattr(options, "config", None) is None:
        return options
    # The second parse has the file's flags first. The flags of the command line come later, so they
    # override them.
    before = [flag for flags in flags_of_file(options.config).values() for flag in flags]
    # The last flag of the file may take several values. --config ends it before the arguments.
    between = f"--config={options.config}"
    return parser.parse_args([arguments[0], *before, between, *arguments[1:]])


def _joined(arguments: Sequence[str]) -> list[str]:
    """Joins `--gateway-args --page`, which argparse takes for two flags, by a `=`."""
    flags = [f"--{name}-args" for name in TIERS]
    joined: list[str] = []
    for argument in arguments:
        if argument.startswith("-") and joined and joined[-1] in flags:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _become_tier(tier: str, arguments: Sequence[str]) -> NoReturn:
    require_extra(tier, f"pixtral-serve {tier}")
    command = [sys.executable, "-m", f"pixtral_{tier}", *arguments]
    os.execv(sys.executable, command)  # noqa: S606 - the tier replaces this process


def _up(options: argparse.Namespace) -> int:
    require_extra("cli", "pixtral-serve up")
    from pixtral_cli.up import run_up

    return run_up(options)


def _demo(options: argparse.Namespace) -> int:
    require_extra("cli", "pixtral-serve demo")
    from pixtral_cli.demo import run_demo_command

    return run_demo_command(options)


def _chat(options: argparse.Namespace) -> int:
    require_extra("cli", "pixtral-serve chat")
    from pixtral_cli.chat import run_chat

    return run_chat(options)


def _key(_: argparse.Namespace) -> int:
    key = f"pixtral-{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    print_line(f'PIXTRAL_API_KEY={key}\nkeys = ["sha256:{digest}"]')
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands and their flags. Each tier parses its flags itself."""
    parser = argparse.ArgumentParser(
        prog="pixtral-serve",
        description="Serves Pixtral in three tiers, and talks to it.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    up = command("up", _up, "Run Redis, encoder, decoder and gateway on this machine until Ctrl-C.")
    up.add_argument(
        "model",
        nargs="?",
        type=Path,
        help=MODEL_HELP,
    )
    up.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file of these flags, with settings of the tiers in [gateway], [encoder] and "
        "[decoder]; flags of the command line override it",
    )
    up.add_argument(
        "--listen", default=DEFAULT_TARGET, help="gRPC address of the gateway (%(default)s)"
    )
    up.add_argument(
        "--http-listen", default=DEFAULT_HTTP, help="HTTP address of the gateway (%(default)s)"
    )
    up.add_argument("--no-page", action="store_true", help="do not serve the page in the browser")
    up.add_argument(
        "--served-model-name",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names of the model in requests; by default the directory's name, or the "
        "repository's id",
    )
    up.add_argument(
        "--image-urls",
        nargs="+",
        default=[],
        metavar="HOST",
        help="hosts from which the gateway fetches images by https URL: names, .example.org for "
        "all names below it, or '*' for every public host; by default none",
    )
    add_vllm_flags(up)
    add_device_flags(up)
    _add_stack_arguments(up, is_named=False)

    chat = command("chat", _chat, "Ask a question with images, or have a conversation.")
    chat.epilog = CHAT_EXIT_CODES
    chat.add_argument(
        "question",
        nargs="?",
        help="the question, which may name images by path or URL; without a question: an "
        "interactive conversation",
    )
    chat.add_argument(
        *("--image", "-i"),
        action="append",
        default=[],
        metavar="PATH|URL",
        help="an image to send; repeatable",
    )
    chat.add_argument(
        "--target", default=DEFAULT_TARGET, help="gRPC address of the gateway (%(default)s)"
    )
    chat.add_argument(
        "--model", help="a model that the gateway lists; by default the gateway's own"
    )
    chat.add_argument(
        "--max-tokens", type=int, default=1024, help="the most tokens of an answer (%(default)s)"
    )
    chat.add_argument("--system", metavar="TEXT", help="the system message")
    chat.add_argument(
        "--plain",
        action="store_true",
        help="show the answer's Markdown unrendered, even on a terminal",
    )
    chat.add_argument(
        "--no-history", action="store_true", help="do not store typed lines for the next session"
    )
    chat.add_argument("--temperature", type=float, help="0 is greedy; by default the model's own")
    chat.add_argument("--tls", action="store_true", help="use TLS with the system's authorities")
    chat.add_argument(
        "--tls-ca", type=Path, metavar="PEM", help="use TLS with the authority in this file"
    )
    chat.add_argument(
        "--tls-certificate", type=Path, metavar="PEM", help="certificate of this client"
    )
    chat.add_argument(
        "--tls-private-key", type=Path, metavar="PEM", help="private key of that certificate"
    )

    demo = command(
        "demo", _demo, "Start a stack, ask questions about pictures, and stop the stack."
    )
    demo.add_argument(
        "questions",
        type=Path,
        help="TOML file of [[ask]] tables: pictures, a question and, if known, the answer",
    )
    _add_stack_arguments(demo)
    demo.add_argument("--revision", help=REVISION_HELP)

    pull = command(
        "pull", run_pull, "Fetch a model from Hugging Face's hub, and print its directory."
    )
    pull.add_argument("model", help="repository's id, such as mistralai/Pixtral-12B-2409")
    pull.add_argument("--revision", help=REVISION_HELP)
    pull.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="directory for the files; by default Hugging Face's cache, where `pixtral-serve up` "
        "finds them by the id",
    )

    doctor = command("doctor", run_doctor, "List what this machine lacks, and how to get it.")
    doctor.add_argument(
        "--model-dir",
        type=Path,
        help="the model that will run on this machine: a directory, or the id of a repository in "
        "Hugging Face's cache",
    )
    doctor.add_argument("--revision", help=REVISION_HELP)
    doctor.add_argument(
        "--listen", default=DEFAULT_TARGET, help="gRPC address of the gateway (%(default)s)"
    )
    doctor.add_argument(
        "--http-listen", default=DEFAULT_HTTP, help="HTTP address of the gateway (%(default)s)"
    )

    plan = command("plan", run_plan, "Compute how many GPUs a load needs, beside stock vLLM.")
    add_plan_arguments(plan)

    command("key", _key, "Print a new API key for a caller, and its digest for the gateway's file.")

    for name in TIERS:
        commands.add_parser(
            name, help=f"Run the {name} alone; `pixtral-serve {name} --help` lists its settings."
        )
    return parser


def _add_stack_arguments(parser: argparse.ArgumentParser, *, is_named: bool = True) -> None:
    parser.add_argument(
        "--model-dir",
        type=Path,
        required=is_named,
        help=MODEL_HELP,
    )
    parser.add_argument(
        "--dtype",
        choices=["bf16", "f32"],
        default="bf16",
        help="dtype of the vision tower, its embeddings and the language model (%(default)s)",
    )
    parser.add_argument(
        "--redis-max-memory",
        default="1gb",
        metavar="SIZE",
        help="memory of the Redis that starts if PIXTRAL_REDIS_URL names none (%(default)s)",
    )
    for name in TIERS:
        parser.add_argument(
            f"--{name}-args",
            default="",
            metavar="FLAGS",
            help=f"more flags for the {name}, in one string",
        )
    parser.add_argument(
        "--log-dir",
        type=Path,
        help="directory for the logs; by default they remain only after a failure",
    )


if __name__ == "__main__":
    sys.exit(main())
