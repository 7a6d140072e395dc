"""Sends the images of a request to the engine only once if the request asks for several answers.

Library: vLLM
Changes: the method add_request_async of an engine's EngineCoreClient leaves out those images that
    an earlier copy of the request has sent.
Why: vLLM divides a request with n > 1 into one request for each answer, and sends their common
    images with each: n times 8 MB for a large image.
Upstream: https://github.com/vllm-project/vllm/pull/14985 (shares the images, sends them n times)
Versions: vLLM 0.25.1 to 0.33.0
"""

from typing import TYPE_CHECKING

from pixtral_core.hooks import Touch, check_touches
from pixtral_decoder.vllm_hooks.image_cache import ImageCache

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.async_llm import AsyncLLM

TOUCHES = (
    Touch("vllm.v1.engine.core_client", "AsyncMPClient.add_request_async", parameters=("request",)),
    Touch("vllm.v1.engine.async_llm", "AsyncLLM.add_request", mentions=("copy",)),
    Touch("vllm.v1.engine.async_llm", "AsyncLLM.__init__", mentions=("engine_core",)),
    Touch("vllm.v1.engine", "EngineCoreRequest", parameters=("mm_features",)),
    Touch("vllm.multimodal.inputs", "MultiModalFeatureSpec", parameters=("data", "mm_hash")),
)


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


def send_images_once(llm: "AsyncLLM", cache: ImageCache) -> None:
    """Changes how `llm` sends requests. `cache` is the record of its engine's images."""
    core = llm.engine_core
    send = core.add_request_async

    async def send_and_leave_out(request: "EngineCoreRequest") -> None:
        await send(request)
        for feature in request.mm_features or ():
            if feature.data is not None:
                name = feature.mm_hash or feature.identifier
                feature.data = cache.sent_again(name, feature.data)

    core.add_request_async = send_and_leave_out
