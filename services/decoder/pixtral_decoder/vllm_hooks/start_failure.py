"""Passes the cause of an engine's failed start to the process that started it.

Library: vLLM
Changes: in the processes that vLLM starts for a decoder, a handler on vLLM's own logger writes the
    first exception of the log into a file for the decoder, until the engine has started.
Why: the decoder gets only "Engine core initialization failed. See root cause above". The cause,
    such as a kernel that the device lacks or a tensor that the checkpoint lacks, is in the other
    process's log, a hundred lines higher.
Upstream: https://github.com/vllm-project/vllm/issues/19002 (the message names no cause)
Versions: vLLM 0.25.1 to 0.33.0
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pixtral_core.hooks import Touch, check_touches

TOUCHES = (
    Touch(
        "vllm.v1.engine.core",
        "EngineCoreProc.run_engine_core",
        mentions=("exception",),
    ),
    Touch(
        "vllm.v1.executor.multiproc_executor",
        "WorkerProc.worker_main",
        mentions=("exception",),
    ),
)

# This environment variable has the path of the file, for the processes that start while it exists.
CAUSE = "PIXTRAL_ENGINE_START_FAILURE"
MOST_CHARACTERS = 500


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


@contextmanager
def recorded() -> Iterator[Callable[[], str]]:
    """Yields a function that says why an engine of the block did not start.

    It returns one line, or nothing if no process of the engine has logged an exception.
    """
    with tempfile.TemporaryDirectory(prefix="pixtral-start-") as directory:
        path = Path(directory) / "cause"
        os.environ[CAUSE] = str(path)
        try:
            yield lambda: path.read_text("utf-8") if path.is_file() else ""
        finally:
            os.environ.pop(CAUSE, None)


def record() -> None:
    """Writes the first exception that vLLM logs in this process to the file of `recorded`."""
    if path := os.environ.get(CAUSE):
        logging.getLogger("vllm").addHandler(_FirstException(Path(path)))


class _FirstException(logging.Handler):
    def __init__(self, path: Path) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        # After the start the folder does not exist, and `open` fails. If several processes fail,
        # only the first writes, because its failure causes the others.
        with suppress(OSError), self._path.open("x", encoding="utf-8") as file:
            file.write(one_line(error))


def one_line(error: BaseException) -> str:
    """An exception's type and the first line of its message that has text."""
    lines = (line.strip() for line in str(error).splitlines())
    message = next((line for line in lines if line), "")
    return f"{type(error).__name__}: {message}"[:MOST_CHARACTERS]
