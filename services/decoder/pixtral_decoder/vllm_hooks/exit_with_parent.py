"""Ends an engine's process when its parent has gone.

Library: vLLM
Changes: the processes that vLLM starts for a decoder watch their parent, from the time when they
    load the plug-in.
Why: if the decoder is killed, vLLM's engine continues to run. While it starts, it waits minutes for
    its parent. After its start, it occupies its memory and its device forever.
Upstream: https://github.com/vllm-project/vllm/issues/55510
Versions: vLLM 0.25.1 to 0.33.0
"""

import os
import threading
import time

from pixtral_core.hooks import Touch, check_touches

TOUCHES = (
    Touch("vllm.plugins", "load_general_plugins"),
    Touch("vllm.v1.engine.core", "EngineCore.__init__", mentions=("load_general_plugins",)),
)

# This environment variable has the id of the parent. The decoder, and each process that begins to
# watch, sets it for its children: a child that begins after its parent's death could not find the
# parent's id by itself.
PARENT = "PIXTRAL_ENGINE_PARENT"
SECONDS_BETWEEN_LOOKS = 0.2


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


def is_owned() -> bool:
    """Whether this process is a decoder, or a process of a decoder's engine."""
    return PARENT in os.environ


def own() -> None:
    """Makes the children of this process end with it, if they call `end_with_parent`."""
    os.environ[PARENT] = str(os.getpid())


def end_with_parent() -> None:
    """Watches the parent, and ends this process once the parent has ended for any reason.

    A second call changes nothing. prctl's PR_SET_PDEATHSIG would not do: the system sends that
    signal when the thread that started the process ends, and the decoder's thread that starts the
    engine ends after the start.
    """
    parent = os.environ.get(PARENT)
    if parent is None or int(parent) == os.getpid():
        return
    own()
    watch = threading.Thread(
        target=_watch, args=(int(parent),), name="end-with-parent", daemon=True
    )
    watch.start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
