"""POST /v1/completions."""

import asyncio
import uuid
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse

from pixtral_core.concurrency.merge import merged
from pixtral_gateway.api.http.event_stream import EventStream
from pixtral_gateway.api.http.front import Front
from pixtral_gateway.api.http.middleware import while_client_waits
from pixtral_gateway.api.openai.completions.answer import CompletionWriter
from pixtral_gateway.api.openai.completions.request import CompletionRequest
from pixtral_gateway.checks.validation import check_sampling
from pixtral_gateway.request import RawPrompt
from pixtral_gateway.tenancy.tenants import Tenant

# How many prompts of one request run at once. The others wait, and leave permits to other requests.
PROMPTS_AT_ONCE = 16


class Completions:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def complete(self, request: Request) -> JSONResponse | EventStream:
        arrival, asked, adapter = await self._front.asked(request, CompletionRequest)
        backend = self._front.backend
        with asked.own_names():
            prompts = asked.prompts(backend.vocabulary_size)
            sampling = asked.sampling(
                disable_any_whitespace=self._front.settings.disable_any_whitespace
            )
            check_sampling(sampling, vocabulary_size=backend.vocabulary_size)
        completion_id = f"cmpl-{uuid.uuid4().hex}"
        begun = [
            self._front.begin(
                completion_id if len(prompts) == 1 else f"{completion_id}-{i}",
                arrival,
                prompt,
                sampling,
                adapter=adapter,
                priority=asked.priority,
                is_gathered=not asked.stream,
            )
            for i, prompt in enumerate(prompts)
        ]
        if self._front.settings.force_include_usage:
            asked.always_include_usage()
        async with while_client_waits(request.receive):
            writer = CompletionWriter(
                asked.answer_id(completion_id),
                asked.model or self._front.model,
                asked,
                *await self._texts(asked, prompts, arrival.tenant),
            )
        events = merged([backend.pipeline.stream(each) for each in begun], at_once=PROMPTS_AT_ONCE)
        if asked.stream:
            return EventStream(writer.chunks(events))
        async with while_client_waits(request.receive):
            with asked.own_names():
                answer = await writer.whole(events)
            # An answer with log-probabilities may have megabytes.
            return await asyncio.to_thread(JSONResponse, answer)

    async def _texts(
        self, asked: CompletionRequest, prompts: Sequence[RawPrompt], tenant: Tenant
    ) -> tuple[list[str], list[str]]:
        """The text that an echo puts before the choices of each prompt, and each prompt's first
        token."""
        if not asked.echo:
            return [""] * len(prompts), [""] * len(prompts)
        pipeline, echoes, first_tokens = self._front.backend.pipeline, [], []
        for prompt in prompts:
            if prompt.text:
                echoes.append(prompt.text)
                first = await pipeline.tokenize(prompt.text, tenant, bos=prompt.bos)
            else:
                echoes.append(await pipeline.detokenize(prompt.token_ids, tenant))
                first = prompt.token_ids
            first_tokens.append(await pipeline.detokenize(first[:1], tenant))
        return echoes, first_tokens
