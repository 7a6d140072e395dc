"""Ends an engine without a log line that the engine has died.

Library: vLLM
Changes: the task that reads the engine's output ends before the engine does.
Why: AsyncLLM.shutdown ends the engine's process first, and cancels that task afterwards. Because
    AsyncLLM.shutdown blocks, it must run in a thread. Meanwhile the task mistakes the end of the
    process for a failure of the engine, and logs an error.
Upstream: none known
Versions: vLLM 0.25.1 to 0.33.0
"""

import asyncio
from typing import TYPE_CHECKING

from pixtral_core.hooks import Touch, check_touches

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

TOUCHES = (
    Touch("vllm.v1.engine.async_llm", "AsyncLLM.__init__", mentions=("output_handler",)),
    Touch("vllm.v1.engine.async_llm", "AsyncLLM.shutdown"),
)


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


async def shut_down(llm: "AsyncLLM") -> None:
    """Ends the engine's process, in seconds. Requests that still run are aborted."""
    if llm.output_handler is not None:
        llm.output_handler.cancel()
    await asyncio.to_thread(llm.shutdown)
