"""The servicer of `pixtral.v1.ChatService`: protobuf in, protobuf out."""
# ruff: noqa: N802 - methods have the names of the proto

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeAlias

import grpc

from pixtral.v1 import chat_pb2, chat_pb2_grpc
from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.errors import ServingError
from pixtral_core.generation import logprobs
from pixtral_core.generation.sampling import from_proto as sampling_from_proto
from pixtral_core.server.grpc_interceptor import EarlyCheck
from pixtral_core.server.reception import Incoming, Reception
from pixtral_core.server.socket_bytes import host_of
from pixtral_core.telemetry.request_log import note
from pixtral_gateway.api.backend import Backend
from pixtral_gateway.api.grpc import from_proto, to_proto
from pixtral_gateway.checks.conversation import Conversation
from pixtral_gateway.checks.validation import adapter_of, check_parts, check_sampling
from pixtral_gateway.request import Delta, Finished, Request, ToolCallDelta, whole_calls
from pixtral_gateway.settings import GatewaySettings
from pixtral_gateway.tenancy.tenants import Tenant, Tenants

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_DESCRIPTOR = chat_pb2.DESCRIPTOR.services_by_name["ChatService"]
SERVICE: str = _DESCRIPTOR.full_name
METHODS: tuple[str, ...] = tuple(_DESCRIPTOR.methods_by_name)

# When a client breaks off an RPC, its messages end as if they were complete, and the RPC is
# cancelled within this time.
CANCEL_SECONDS = 0.02
# A completion with more tokens than this is converted in a thread.
MAX_LOGPROBS_AT_ONCE = 256

# The tenant is found before the message is received. Each RPC has its own context, and thus its own
# tenant.
_TENANT: ContextVar[Tenant] = ContextVar("tenant")


class ChatService(chat_pb2_grpc.ChatServiceServicer):
    """`backend` is set once the checkpoint is loaded; the gate lets no RPC in before."""

    backend: Backend

    def __init__(self, settings: GatewaySettings, tenants: Tenants, incoming: Incoming) -> None:
        self._incoming = incoming
        self._settings = settings
        self._tenants = tenants
        self._model = settings.model_names[0]

    def register(self, server: grpc.aio.Server) -> None:
        chat_pb2_grpc.add_ChatServiceServicer_to_server(self, server)

    def early_checks(self) -> dict[str, EarlyCheck]:
        """Checks by method that run before the request's message is received.

        A client without a key must not make the gateway receive a message of megabytes.
        """
        checks: dict[str, EarlyCheck] = dict.fromkeys(
            (f"{SERVICE}/{name}" for name in METHODS), self._check_tenant
        )
        for name in ("Complete", "StreamComplete", "CountTokens"):
            is_completion = name != "CountTokens"
            checks[f"{SERVICE}/{name}"] = partial(self._check_room, is_completion=is_completion)
        return checks

    async def StreamComplete(
        self, request: chat_pb2.StreamCompleteRequest, context: Context
    ) -> AsyncGenerator[chat_pb2.StreamCompleteResponse]:
        with _named_from_the_request():
            asked = self._request(request.chat, context)
            model = request.chat.model or self._model
            # `asked` has copies of the parts that it needs, so this frees the message. protobuf
            # keeps a whole message while a part of it is in use.
            del request
            async with aclosing(self.backend.pipeline.stream(asked)) as events:
                async for event in events:
                    match event:
                        case Delta():
                            yield to_proto.response(asked.id, model, event)
                        case Finished():
                            completion = await _completion(event)
                            yield chat_pb2.StreamCompleteResponse(
                                id=asked.id, model=model, completion=completion
                            )

    async def Complete(
        self, request: chat_pb2.CompleteRequest, context: Context
    ) -> chat_pb2.CompleteResponse:
        with _named_from_the_request():
            asked = self._request(request.chat, context, is_gathered=True)
            model = request.chat.model or self._model
            del request
            response = chat_pb2.CompleteResponse(id=asked.id, model=model)
            choices = [response.choices.add(index=i) for i in range(asked.sampling.n)]
            texts: list[list[str]] = [[] for _ in choices]
            thoughts: list[list[str]] = [[] for _ in choices]
            calls: list[list[ToolCallDelta]] = [[] for _ in choices]
            async with aclosing(self.backend.pipeline.stream(asked)) as events:
                async for event in events:
                    match event:
                        case Delta():
                            choice = choices[event.index]
                            texts[event.index].append(event.text)
                            thoughts[event.index].append(event.reasoning)
                            calls[event.index].extend(event.tool_calls)
                            choice.token_ids.extend(event.token_ids)
                            choice.logprobs.extend(map(logprobs.to_proto, event.logprobs))
                            choice.finish_reason = to_proto.FINISH_REASONS[event.finish_reason]
                            to_proto.set_stop_reason(choice, event)
                        case Finished():
                            response.completion.CopyFrom(await _completion(event))
        for choice, parts, thought, pieces in zip(choices, texts, thoughts, calls, strict=True):
            choice.text = "".join(parts)
            choice.reasoning = "".join(thought)
            choice.tool_calls.extend(map(to_proto.tool_call, whole_calls(pieces)))
        return response

    async def CountTokens(
        self, request: chat_pb2.CountTokensRequest, context: Context
    ) -> chat_pb2.CountTokensResponse:
        with _named_from_the_request():
            self._adapter(request.chat.model)
            conversation = self._conversation(request.chat)
            del request
            prompt = await self.backend.pipeline.count(conversation, _TENANT.get())
        return chat_pb2.CountTokensResponse(
            prompt_tokens=len(prompt.token_ids), image_tokens=prompt.image_tokens
        )

    async def ListModels(
        self, request: chat_pb2.ListModelsRequest, context: Context
    ) -> chat_pb2.ListModelsResponse:
        names = self._settings.model_names
        context_length = self.backend.tiers.context_length
        models = [
            chat_pb2.Model(
                name=name,
                context_length=context_length,
                max_images=self._settings.max_images,
                max_image_bytes=self._settings.max_image_bytes,
                parent="" if name in names else self._model,
            )
            for name in (*names, *self.backend.tiers.adapters)
        ]
        return chat_pb2.ListModelsResponse(models=models)

    async def PutImage(
        self, requests: AsyncIterator[chat_pb2.PutImageRequest], context: Context
    ) -> chat_pb2.PutImageResponse:
        deadline = Deadline.after(self._seconds(context))
        async with aclosing(_pieces(requests)) as pieces:
            tenant = _TENANT.get()
            party = self._tenants.party(tenant, host_of(context.peer()))
            image = await self.backend.uploads.put(pieces, tenant, deadline, party)
        return chat_pb2.PutImageResponse(
            sha256=image.sha256.hex(),
            width=image.width,
            height=image.height,
            tokens=image.grid.placeholder_length,
        )

    def _find_tenant(self, context: Context) -> Tenant:
        """The tenant of the RPC's key. Raises Unauthenticated."""
        metadata = context.invocation_metadata() or ()
        headers = (str(value) for name, value in metadata if name == "authorization")
        tenant = self._tenants.serve(*headers)
        _TENANT.set(tenant)
        note(tenant=tenant.name)
        return tenant

    def _check_tenant(self, context: Context) -> Reception:
        """Raises Unauthenticated."""
        tenant = self._find_tenant(context)
        return Reception(self._incoming, self._tenants.party(tenant, host_of(context.peer())))

    def _check_room(self, context: Context, *, is_completion: bool) -> Reception:
        """Raises Unauthenticated, and Overloaded if there is no room whatever the message is."""
        reception = self._check_tenant(context)
        reception.counter = _TENANT.get()
        self.backend.admission.check(_TENANT.get(), is_completion=is_completion)
        return reception

    def _adapter(self, model: str) -> str:
        return adapter_of(model, self._settings.model_names, self.backend.tiers.adapters)

    def _conversation(self, chat: chat_pb2.Chat) -> Conversation:
        context_length = self.backend.tiers.context_length
        check_parts([len(message.content) for message in chat.messages], context_length)
        return from_proto.read_conversation(
            chat.messages,
            max_images=self._settings.max_images,
            tools=from_proto.read_tools(chat),
            goes_on=chat.continue_final_message,
            reasoning_effort=chat.reasoning_effort,
        )

    def _request(
        self, chat: chat_pb2.Chat, context: Context, *, is_gathered: bool = False
    ) -> Request:
        arrival = time.monotonic()
        adapter = self._adapter(chat.model)
        conversation = self._conversation(chat)
        sampling = sampling_from_proto(chat.sampling)
        check_sampling(sampling, vocabulary_size=self.backend.vocabulary_size)
        return Request.begin(
            uuid.uuid4().hex,
            self._model,
            _TENANT.get(),
            conversation,
            sampling,
            arrival=arrival,
            seconds=self._seconds(context),
            adapter=adapter,
            priority=chat.priority,
            is_gathered=is_gathered,
        )

    def _seconds(self, context: Context) -> float:
        """The seconds that the RPC may take."""
        seconds = self._settings.request_timeout_seconds
        client_seconds = context.time_remaining()
        return seconds if client_seconds is None else min(seconds, client_seconds)


async def _pieces(requests: AsyncIterator[chat_pb2.PutImageRequest]) -> AsyncGenerator[bytes]:
    async for request in requests:
        yield request.data
    await asyncio.sleep(CANCEL_SECONDS)


async def _completion(finished: Finished) -> chat_pb2.Completion:
    if len(finished.prompt_logprobs) > MAX_LOGPROBS_AT_ONCE:
        return await asyncio.to_thread(to_proto.completion, finished)
    return to_proto.completion(finished)


@contextmanager
def _named_from_the_request() -> Iterator[None]:
    """Adds `chat` to the paths in errors, because the gateway's checks know the fields of a chat
    alone."""
    try:
        yield
    except ServingError as error:
        if not error.violations:
            raise
        raise error.within("chat") from None
