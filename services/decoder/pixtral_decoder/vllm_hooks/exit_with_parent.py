"""The end of a process whose parent has gone.

What vLLM starts outlives a decoder that was killed: its engine waits for minutes to be spoken to
while it starts, and later holds its memory and its device for good.
"""

import os
import threading
import time

# Set by the decoder and by each process that begins to watch, for the processes that it starts:
# one that begins after its parent's death could not tell by itself who that was.
PARENT = "PIXTRAL_ENGINE_PARENT"
SECONDS_BETWEEN_LOOKS = 0.2


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
