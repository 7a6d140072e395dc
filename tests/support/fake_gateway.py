"""A `ChatService` that answers as its test asks, in this process on a free port."""

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from pixtral.v1 import chat_pb2, chat_pb2_grpc

WORDS = ["A ", "cat ", "on ", "a ", "mat."]
CALLED = chat_pb2.FINISH_REASON_TOOL_CALLS
SUMMARY = chat_pb2.Completion(
    usage=chat_pb2.Usage(
        prompt_tokens=70, image_tokens=64, cached_tokens=32, completion_tokens=len(WORDS)
    ),
    timings=chat_pb2.Timings(
        queue=Duration(nanos=1_000_000),
        encode=Duration(nanos=250_000_000),
        time_to_first_token=Duration(seconds=1, nanos=500_000_000),
        total=Duration(seconds=2),
    ),
    images=[chat_pb2.ImageReport(sha256="ab", width=640, height=480, tokens=64, cached=True)],
)


def likely(token: int) -> chat_pb2.TokenLogprobs:
    chosen = chat_pb2.Logprob(token_id=token, text=WORDS[token], logprob=-0.5)
    return chat_pb2.TokenLogprobs(
        chosen=chosen, top=[chosen, chat_pb2.Logprob(token_id=99, logprob=-1.5)]
    )


def said(text: str, choice: int) -> str:
    return text.upper() if choice else text


class FakeGateway(chat_pb2_grpc.ChatServiceServicer):
    """Answers every request with WORDS, unless a test sets something else.

    Attributes:
        requests: the requests so far.
        authorizations: the `authorization` metadata of each request.
        failure: the status that every request ends with, if set.
        failures: statuses that the next requests end with, one each.
        refused_each: n, if each n-th request is refused; 0 for none.
        breaks: the status that a stream ends with after its first delta, if set.
        stuck: whether a request sends its first delta, and then waits until it is cancelled.
        choices: the number of choices.
        ending: the `stop_reason` of answers in text, as a field of Choice.
        images: SHA-256 digests of the files so far, which requests may name.
        is_old: whether the gateway accepts no images by name.
        calls: tool calls to answer with in place of text.
        rounds: the tool calls of each of the next answers.
        is_cut: whether answers end because of their length.
        cancelled: set when a request is cancelled.
        address: the gateway's host:port.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.authorizations: list[Any] = []
        self.failure: status_pb2.Status | None = None
        self.failures: list[status_pb2.Status] = []
        self.refused_each = 0
        self.breaks: status_pb2.Status | None = None
        self.stuck = False
        self.choices = 1
        self.ending: dict[str, Any] = {}
        self.images: set[str] = set()
        self.is_old = False
        self.calls: list[chat_pb2.ToolCall] = []
        self.rounds: list[list[chat_pb2.ToolCall]] = []
        self.is_cut = False
        self.cancelled = threading.Event()
        self.address = ""

    def Complete(  # noqa: N802
        self, request: chat_pb2.CompleteRequest, context: grpc.ServicerContext
    ) -> chat_pb2.CompleteResponse:
        self._arrive(request, context)
        if self.rounds:
            self.calls = self.rounds.pop(0)
        if self.stuck:
            self._wait_for_cancel(context)
        ended = chat_pb2.FINISH_REASON_LENGTH if self.is_cut else chat_pb2.FINISH_REASON_STOP
        return chat_pb2.CompleteResponse(
            id="call-1",
            model="pixtral",
            choices=[
                chat_pb2.Choice(
                    index=choice,
                    text=said("".join(WORDS), choice),
                    token_ids=range(len(WORDS)),
                    finish_reason=ended,
                    logprobs=map(likely, range(len(WORDS))),
                    **self.ending,
                )
                if not self.calls
                else chat_pb2.Choice(index=choice, tool_calls=self.calls, finish_reason=CALLED)
                for choice in range(self.choices)
            ],
            completion=SUMMARY,
        )

    def StreamComplete(  # noqa: N802
        self, request: chat_pb2.StreamCompleteRequest, context: grpc.ServicerContext
    ) -> Iterator[chat_pb2.StreamCompleteResponse]:
        self._arrive(request, context)
        for call in self.calls:
            half = len(call.arguments) // 2
            begun = chat_pb2.ToolCall(
                index=call.index, id=call.id, name=call.name, arguments=call.arguments[:half]
            )
            rest = chat_pb2.ToolCall(index=call.index, arguments=call.arguments[half:])
            for piece in (begun, rest):
                delta = chat_pb2.Choice(tool_calls=[piece])
                if call == self.calls[-1] and piece is rest:
                    delta.finish_reason = CALLED
                yield chat_pb2.StreamCompleteResponse(id="call-1", model="pixtral", delta=delta)
        for index, word in enumerate(WORDS if not self.calls else ()):
            for choice in range(self.choices):
                delta = chat_pb2.Choice(
                    index=choice,
                    text=said(word, choice),
                    token_ids=[index],
                    logprobs=[likely(index)],
                )
                if index == len(WORDS) - 1:
                    delta.finish_reason = (
                        chat_pb2.FINISH_REASON_LENGTH
                        if self.is_cut
                        else chat_pb2.FINISH_REASON_STOP
                    )
                    delta.MergeFrom(chat_pb2.Choice(**self.ending))
                yield chat_pb2.StreamCompleteResponse(id="call-1", model="pixtral", delta=delta)
            if self.breaks is not None:
                context.abort_with_status(rpc_status.to_status(self.breaks))
            if self.stuck:
                self._wait_for_cancel(context)
                return
        yield chat_pb2.StreamCompleteResponse(id="call-1", model="pixtral", completion=SUMMARY)

    def CountTokens(  # noqa: N802
        self, request: chat_pb2.CountTokensRequest, context: grpc.ServicerContext
    ) -> chat_pb2.CountTokensResponse:
        self._arrive(request, context)
        return chat_pb2.CountTokensResponse(prompt_tokens=70, image_tokens=64)

    def ListModels(  # noqa: N802
        self, request: chat_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> chat_pb2.ListModelsResponse:
        self._arrive(request, context)
        model = chat_pb2.Model(
            name="pixtral", context_length=4096, max_images=8, max_image_bytes=2**20
        )
        return chat_pb2.ListModelsResponse(models=[model])

    def PutImage(  # noqa: N802
        self, requests: Iterator[chat_pb2.PutImageRequest], context: grpc.ServicerContext
    ) -> chat_pb2.PutImageResponse:
        pieces = [request.data for request in requests]
        self._arrive(pieces, context)
        sha256 = hashlib.sha256(b"".join(pieces)).hexdigest()
        self.images.add(sha256)
        return chat_pb2.PutImageResponse(sha256=sha256, width=640, height=480, tokens=64)

    def _arrive(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.authorizations.append(dict(context.invocation_metadata()).get("authorization"))
        context.add_callback(self.cancelled.set)
        if self.failures:
            context.abort_with_status(rpc_status.to_status(self.failures.pop(0)))
        if self.refused_each and len(self.requests) % self.refused_each == 0:
            context.abort_with_status(rpc_status.to_status(refusal(0.01)))
        if self.failure is not None:
            context.abort_with_status(rpc_status.to_status(self.failure))
        self._look_at(request.chat.messages if hasattr(request, "chat") else (), context)

    def _look_at(self, messages: Any, context: grpc.ServicerContext) -> None:
        missing = []
        for part in (part for message in messages for part in message.content):
            if part.image.data:
                self.images.add(hashlib.sha256(part.image.data).hexdigest())
        for i, message in enumerate(messages):
            for j, part in enumerate(message.content):
                field = f"chat.messages[{i}].content[{j}].image"
                if part.image.sha256 and self.is_old:
                    context.abort_with_status(rpc_status.to_status(bad(field)))
                if part.image.sha256 and part.image.sha256 not in self.images:
                    missing.append(f"{field}.sha256")
        if missing:
            context.abort_with_status(rpc_status.to_status(not_found(*missing)))

    def _wait_for_cancel(self, context: grpc.ServicerContext) -> None:
        deadline = time.monotonic() + 30
        while context.is_active() and time.monotonic() < deadline:
            self.cancelled.wait(0.1)


def failure(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)


def violations(*fields: str) -> error_details_pb2.BadRequest:
    violation = error_details_pb2.BadRequest.FieldViolation
    return error_details_pb2.BadRequest(
        field_violations=[violation(field=field, description="no") for field in fields]
    )


def bad(field: str) -> status_pb2.Status:
    reason = error_details_pb2.ErrorInfo(reason="INVALID_FIELD", domain="pixtral")
    return failure(grpc.StatusCode.INVALID_ARGUMENT, "no", reason, violations(field))


def not_found(*fields: str) -> status_pb2.Status:
    reason = error_details_pb2.ErrorInfo(reason="IMAGE_NOT_FOUND", domain="pixtral")
    return failure(grpc.StatusCode.NOT_FOUND, "no", reason, violations(*fields))


BAD_IMAGE = failure(
    grpc.StatusCode.INVALID_ARGUMENT,
    "invalid request",
    error_details_pb2.ErrorInfo(reason="IMAGE_TRUNCATED", domain="pixtral"),
    error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field="chat.messages[1].content[0].image.data", description="ends early"
            )
        ]
    ),
)


def refusal(retry_after: float) -> status_pb2.Status:
    """The status of a server that is at its limit."""
    delay = Duration()
    delay.FromMicroseconds(round(retry_after * 1e6))
    return failure(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "too many requests",
        error_details_pb2.ErrorInfo(reason="OVERLOADED", domain="pixtral"),
        error_details_pb2.RetryInfo(retry_delay=delay),
    )


TOO_MUCH = refusal(1.5)


@contextmanager
def serving(gateway: FakeGateway) -> Iterator[str]:
    server = grpc.server(
        ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 64 * 2**20)]
    )
    chat_pb2_grpc.add_ChatServiceServicer_to_server(gateway, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
