"""The public gRPC service: protobuf in, protobuf out."""
# ruff: noqa: N802 - methods have the names of the proto

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration

from pixtral.v1 import chat_pb2, chat_pb2_grpc
from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.errors import ServingError
from pixtral_core.telemetry.request_log import note
from pixtral_gateway.checks.conversation import Conversation
from pixtral_gateway.checks.tools import read_tools, whole_calls
from pixtral_gateway.checks.validation import (
    adapter_of,
    check_parts,
    check_sampling,
    read_conversation,
)
from pixtral_gateway.images.uploads import Uploads
from pixtral_gateway.pipeline import Completions
from pixtral_gateway.request import Ask, Finished
from pixtral_gateway.settings import GatewaySettings
from pixtral_gateway.tenancy.tenants import Tenant, Tenants
from pixtral_gateway.upstream.resume import answers_of

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
# The messages of a call that is cut off end as if they were all, a moment before it is cancelled.
CANCEL_SECONDS = 0.02


class ChatService(chat_pb2_grpc.ChatServiceServicer):
    """`completions` and `uploads` are set once loaded; no call comes before."""

    completions: Completions
    uploads: Uploads

    def __init__(self, settings: GatewaySettings, tenants: Tenants) -> None:
        self._settings = settings
        self._tenants = tenants
        self._model = settings.model_name

    async def StreamComplete(
        self, request: chat_pb2.StreamCompleteRequest, context: Context
    ) -> AsyncGenerator[chat_pb2.StreamCompleteResponse]:
        with _named_from_the_request():
            ask = self._ask(request.chat, context)
            model = request.chat.model or self._model
            # The images in it are copied by now, and a stream is long.
            del request
            async with aclosing(self.completions.stream(ask)) as events:
                async for event in events:
                    response = chat_pb2.StreamCompleteResponse(id=ask.id, model=model)
                    if isinstance(event, Finished):
                        response.completion.CopyFrom(_completion(event))
                    else:
                        response.delta.CopyFrom(event)
                    yield response

    async def Complete(
        self, request: chat_pb2.CompleteRequest, context: Context
    ) -> chat_pb2.CompleteResponse:
        chat = request.chat
        with _named_from_the_request():
            ask = self._ask(chat, context)
            response = chat_pb2.CompleteResponse(id=ask.id, model=chat.model or self._model)
            choices = [response.choices.add(index=i) for i in range(answers_of(chat.sampling))]
            texts: list[list[str]] = [[] for _ in choices]
            calls: list[list[chat_pb2.ToolCall]] = [[] for _ in choices]
            async with aclosing(self.completions.stream(ask)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        response.completion.CopyFrom(_completion(event))
                    else:
                        choice = choices[event.index]
                        texts[event.index].append(event.text)
                        calls[event.index].extend(event.tool_calls)
                        choice.token_ids.extend(event.token_ids)
                        choice.logprobs.extend(event.logprobs)
                        choice.finish_reason = event.finish_reason
        for choice, parts, pieces in zip(choices, texts, calls, strict=True):
            choice.text = "".join(parts)
            choice.tool_calls.extend(whole_calls(pieces))
        return response

    def check_room(self, context: Context) -> None:
        """Raises Unauthenticated and Overloaded, from what is known without the message."""
        self.completions.check_room(self._tenant(context))

    def check_key(self, context: Context) -> None:
        """Raises Unauthenticated."""
        self._tenant(context)

    async def CountTokens(
        self, request: chat_pb2.CountTokensRequest, context: Context
    ) -> chat_pb2.CountTokensResponse:
        tenant = self._tenant(context)
        with _named_from_the_request():
            prompt = await self.completions.count(self._conversation(request.chat), tenant)
        return chat_pb2.CountTokensResponse(
            prompt_tokens=len(prompt.token_ids), image_tokens=prompt.image_tokens
        )

    async def ListModels(
        self, request: chat_pb2.ListModelsRequest, context: Context
    ) -> chat_pb2.ListModelsResponse:
        self._tenant(context)
        context_length = self.completions.context_length
        models = [
            chat_pb2.Model(
                name=name,
                context_length=context_length,
                max_images=self._settings.max_images,
                max_image_bytes=self._settings.max_image_bytes,
                parent=self._model if name != self._model else "",
            )
            for name in (self._model, *self.completions.adapters)
        ]
        return chat_pb2.ListModelsResponse(models=models)

    async def PutImage(
        self, requests: AsyncIterator[chat_pb2.PutImageRequest], context: Context
    ) -> chat_pb2.PutImageResponse:
        tenant = self._tenant(context)
        deadline = Deadline.after(self._seconds(context))
        async with aclosing(_pieces(requests)) as pieces:
            image = await self.uploads.put(pieces, tenant, deadline)
        return chat_pb2.PutImageResponse(
            sha256=image.sha256.hex(),
            width=image.width,
            height=image.height,
            tokens=image.grid.placeholder_length,
        )

    def _tenant(self, context: Context) -> Tenant:
        metadata = context.invocation_metadata() or ()
        headers = (str(value) for name, value in metadata if name == "authorization")
        tenant = self._tenants.of(*headers)
        note(tenant=tenant.name)
        return tenant

    def _adapter(self, model: str) -> str:
        return adapter_of(model, self._model, self.completions.adapters)

    def _conversation(self, chat: chat_pb2.Chat) -> Conversation:
        self._adapter(chat.model)
        check_parts([len(m.content) for m in chat.messages], self.completions.context_length)
        return read_conversation(
            chat.messages, max_images=self._settings.max_images, tools=read_tools(chat)
        )

    def _ask(self, chat: chat_pb2.Chat, context: Context) -> Ask:
        arrival = time.monotonic()
        tenant = self._tenant(context)
        conversation = self._conversation(chat)
        check_sampling(chat.sampling, vocabulary_size=self.completions.vocabulary_size)
        return Ask.begin(
            uuid.uuid4().hex,
            self._model,
            tenant,
            conversation,
            chat.sampling,
            arrival=arrival,
            seconds=self._seconds(context),
            adapter=self._adapter(chat.model),
            priority=chat.priority,
        )

    def _seconds(self, context: Context) -> float:
        """What the call may take."""
        seconds = self._settings.request_timeout_seconds
        client_seconds = context.time_remaining()
        return seconds if client_seconds is None else min(seconds, client_seconds)


@contextmanager
def _named_from_the_request() -> Iterator[None]:
    """Adds `chat` to the paths in errors: the gateway's checks know the fields of a chat alone."""
    try:
        yield
    except ServingError as error:
        if not error.violations:
            raise
        raise error.within("chat") from None


def _completion(finished: Finished) -> chat_pb2.Completion:
    usage, timings = finished.usage, finished.timings
    return chat_pb2.Completion(
        usage=chat_pb2.Usage(
            prompt_tokens=usage.prompt_tokens,
            image_tokens=usage.image_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
        ),
        timings=chat_pb2.Timings(
            queue=_duration(timings.queue),
            encode=_duration(timings.encode),
            time_to_first_token=_duration(timings.time_to_first_token),
            total=_duration(timings.total),
        ),
        images=[
            chat_pb2.ImageReport(
                sha256=image.sha256,
                width=image.width,
                height=image.height,
                tokens=image.tokens,
                cached=image.cached,
                encode=_duration(image.encode),
            )
            for image in finished.images
        ],
        prompt_logprobs=finished.prompt_logprobs,
    )


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


async def _pieces(requests: AsyncIterator[chat_pb2.PutImageRequest]) -> AsyncGenerator[bytes]:
    async for request in requests:
        yield request.data
    await asyncio.sleep(CANCEL_SECONDS)
