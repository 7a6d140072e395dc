"""Images of a request for several answers; `test_engine.py` weighs what a whole engine is sent."""

import asyncio
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pixtral_decoder.vllm_hooks import image_fan_out
from pixtral_decoder.vllm_hooks.image_cache import ImageCache
from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor

    from pixtral_decoder.engine.inputs import embedding_item

ANSWERS = 3


class Core:
    """Stands for vLLM's client of the engine: notes whether a request brings its image."""

    def __init__(self) -> None:
        self.has_image: list[bool] = []

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        self.has_image += [feature.data is not None for feature in request.mm_features or ()]


def request() -> EngineCoreRequest:
    feature = MultiModalFeatureSpec(
        data=embedding_item(torch.zeros(4, 4)),
        modality="image",
        identifier="a",
        mm_position=PlaceholderRange(0, 1),
        mm_hash="a",
    )
    sampling = SamplingParams(
        n=ANSWERS, max_tokens=1, output_kind=RequestOutputKind.DELTA, detokenize=False
    )
    return EngineCoreRequest(
        request_id="several",
        prompt_token_ids=[1],
        mm_features=[feature],
        sampling_params=sampling,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id="several",
    )


@pytest.fixture
async def llm() -> Any:
    """vLLM's frontend, as far as it makes a request for each answer; its engine is `Core`."""
    frontend = type("Frontend", (AsyncLLM,), {"errored": False, "__del__": lambda _: None})
    llm: Any = object.__new__(frontend)
    llm.engine_core = Core()
    llm.log_requests = False
    llm.renderer = None
    llm.output_handler = asyncio.Future()
    llm.output_processor = OutputProcessor(None, log_stats=False)
    llm.input_processor = SimpleNamespace(
        process_inputs=lambda *_, **__: request(), assign_request_id=lambda _: None
    )
    llm.vllm_config = SimpleNamespace(
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
        scheduler_config=SimpleNamespace(max_num_queued_reqs=None, max_num_queued_tokens=None),
    )
    llm.scheduler_config = llm.vllm_config.scheduler_config
    llm.model_config = SimpleNamespace(is_encoder_decoder=False)
    llm._supported_tasks = ("generate",)
    return llm


async def add(llm: Any) -> None:
    prompt: Any = {"type": "token", "prompt_token_ids": [1]}
    made = request()
    await llm.add_request("several", prompt, made.sampling_params)


def test_still_there() -> None:
    assert_still_there(image_fan_out)


async def test_still_needed_while_vllm_sends_an_image_with_each_answer(llm: Any) -> None:
    """Once this fails, `pixtral_decoder.vllm_hooks.image_fan_out` can go."""
    await add(llm)
    assert llm.engine_core.has_image == [True] * ANSWERS


async def test_an_image_goes_with_the_first_answer_alone(llm: Any) -> None:
    class Record:
        """As vLLM's record is of an image that was sent with the request before."""

        def is_cached_item(self, mm_hash: str) -> bool:
            return mm_hash == "a"

        def get_and_update_item(self, mm_item: Any, mm_hash: str) -> Any:
            assert mm_item is None
            return None, ()

        def touch_sender_cache_item(self, mm_hash: str) -> None:
            raise AssertionError

    image_fan_out.send_images_once(llm, ImageCache(Record()))
    core = llm.engine_core
    await add(llm)
    assert core.has_image == [True] + [False] * (ANSWERS - 1)
