"""Ends an engine's process when its parent has gone.

Library: vLLM
Changes: the processes that vLLM starts for a decoder watch their parent, from the time when they
    load the plug-in.
Why: vLLM's engine outlives a decoder that was killed. During its start it waits minutes for its
    parent; later it occupies its memory and its device forever.
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

# Set by the decoder and by each process that begins to watch, for the processes that it starts:
# one that begins after its parent's death could not tell by itself who that was.
PARENT = "PIXTRAL_ENGINE_PARENT"
SECONDS_BETWEEN_LOOKS = 0.2


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


def is_owned() -> bool:
    """Whether this process is a decoder's, or one of its engine's."""
    return PARENT in os.environ


def own() -> None:
    """Has the processes that this one starts end with it, where they call `end_with_parent`."""
    os.environ[PARENT] = str(os.getpid())


def end_with_parent() -> None:
    """Ends this process once its parent has ended, however that was. Calling it again is nothing.

    Not by prctl's PR_SET_PDEATHSIG: that is sent when the thread ends that started the process,
    and the decoder's ends when its engine has started.
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
