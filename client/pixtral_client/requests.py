"""The requests that both clients send, and the channel that they open."""

import ipaddress
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import grpc

from pixtral.v1 import chat_pb2
from pixtral_client.messages import Messages, goes_on, to_image, to_protos
from pixtral_client.results import (
    Completion,
    Delta,
    completion_from_proto,
    delta_from_proto,
    joined_calls,
)
from pixtral_client.sent_images import Request, data_of
from pixtral_client.tools import OPTIONS, tool_fields

DEFAULT_TARGET = "127.0.0.1:50051"
# vLLM's server has the same default address.
DEFAULT_HTTP = "127.0.0.1:8000"
DEFAULT_TIMEOUT = 600.0
MAX_MESSAGE_BYTES = 64 * 2**20
PIECE_BYTES = 256 << 10
API_KEY_VARIABLE = "PIXTRAL_API_KEY"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by a loopback name or address, in brackets or not."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_here(target: str) -> bool:
    return is_loopback(target.rpartition(":")[0])


def channel_options(target: str) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # gRPC uses the environment's http_proxy even for this machine.
        ("grpc.enable_http_proxy", int(not _is_here(target))),
    ]


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files for a connection over TLS.

    Attributes:
        ca: the trusted authorities; None for those of the system.
        certificate: this client's certificate, for a server that requires one.
        private_key: the key of `certificate`.
    """

    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key must be set together")

    def credentials(self) -> grpc.ChannelCredentials:
        """The files in gRPC's form. Raises OSError if a file cannot be read."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes() if self.ca else None,
            private_key=self.private_key.read_bytes() if self.private_key else None,
            certificate_chain=self.certificate.read_bytes() if self.certificate else None,
        )


def authorization(api_key: str | None, target: str, tls: Tls | None) -> tuple[tuple[str, str], ...]:
    """The metadata with the API key. Raises ValueError if the connection is not private."""
    key = api_key or os.environ.get(API_KEY_VARIABLE)
    if not key:
        return ()
    if tls is None and not _is_here(target):
        raise ValueError("an API key needs TLS, except on this machine")
    return (("authorization", f"Bearer {key}"),)


class StructuredOutput(TypedDict, total=False):
    """The form of an answer: exactly one constraint of `pixtral.v1.StructuredOutput`.

    `disable_any_whitespace` may accompany `json_schema`.
    """

    json_schema: str | Mapping[str, Any]
    regex: str
    choice: Sequence[str]
    grammar: str
    json_object: bool
    disable_any_whitespace: bool


class Sampling(TypedDict, total=False):
    """How to pick the next token, as in `pixtral.v1.SamplingParams`.

    A field that is absent or None takes the model's default; temperature 0 is greedy.
    """

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    logprobs: int | None
    logit_bias: Mapping[int, float] | None
    bad_words: Sequence[str] | None
    allowed_token_ids: Sequence[int] | None
    structured_output: StructuredOutput | None
    n: int | None
    prompt_logprobs: int | None
    include_stop_str_in_output: bool | None


class Options(Sampling, total=False):
    """How to answer: the fields of `Sampling`, and those below.

    Attributes:
        tools: the tools that the model may call (`pixtral_client.tools`).
        tool_choice: whether it may or must call a tool, or which one.
        parallel_tool_calls: whether one answer may call several tools.
        priority: requests with a lower priority leave the queue first.
        continue_final_message: whether the answer continues the last message, an assistant's.
        reasoning_effort: for models whose template supports it.
    """

    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    priority: int | None
    continue_final_message: bool | None
    reasoning_effort: str | None


_OF_CHAT = (*OPTIONS, "priority", "continue_final_message", "reasoning_effort")


def chat_request(
    made: type[Request], messages: Messages, model: str | None, options: Mapping[str, Any]
) -> Request:
    """A request of the class `made`, whose chat has these messages and options."""
    request = made()
    # Filled in place, because a protobuf constructor copies its arguments, images included.
    chat = request.chat
    chat.MergeFrom(chat_pb2.Chat(**tool_fields(options)))
    chat.model = model or ""
    chat.sampling.CopyFrom(_sampling(options))
    chat.messages.extend(to_protos(messages))
    chat.priority = options.get("priority") or 0
    chat.reasoning_effort = options.get("reasoning_effort") or ""
    chat.continue_final_message = bool(options.get("continue_final_message")) or goes_on(messages)
    return request


def image_file(image: Any) -> bytes:
    """The file of an image in any form that a message can have."""
    made = to_image(image, "image")
    return data_of(made.url) if made.url else made.data


def upload(data: bytes) -> Iterator[chat_pb2.PutImageRequest]:
    for at in range(0, len(data), PIECE_BYTES):
        yield chat_pb2.PutImageRequest(data=data[at : at + PIECE_BYTES])


def time_left(seconds: float) -> Callable[[], float]:
    """A function that returns how many of `seconds` are left."""
    end = time.monotonic() + seconds
    return lambda: max(0.0, end - time.monotonic())


def completion(response: chat_pb2.CompleteResponse) -> Completion:
    return completion_from_proto(
        [delta_from_proto(choice) for choice in response.choices],
        response.completion,
        call_id=response.id,
        model=response.model,
    )


class Answer:
    """Collects a stream's events, up to its completion."""

    def __init__(self) -> None:
        self._deltas: dict[int, list[Delta]] = {}
        self.completion: Completion | None = None

    def add(self, event: chat_pb2.StreamCompleteResponse) -> Delta | None:
        """The event's delta; None for the last event, which has the summary."""
        if event.HasField("completion"):
            self.completion = completion_from_proto(
                [self._joined(index) for index in sorted(self._deltas)] or [self.so_far],
                event.completion,
                call_id=event.id,
                model=event.model,
            )
            return None
        delta = delta_from_proto(event.delta)
        self._deltas.setdefault(delta.index, []).append(delta)
        return delta

    @property
    def so_far(self) -> Delta:
        """The first choice so far."""
        return self._joined(0)

    def _joined(self, index: int) -> Delta:
        deltas = self._deltas.get(index, [])
        return Delta(
            text="".join(delta.text for delta in deltas),
            token_ids=tuple(token for delta in deltas for token in delta.token_ids),
            finish_reason=deltas[-1].finish_reason if deltas else None,
            logprobs=tuple(each for delta in deltas for each in delta.logprobs),
            index=index,
            tool_calls=joined_calls(call for delta in deltas for call in delta.tool_calls),
            stop_reason=deltas[-1].stop_reason if deltas else None,
            reasoning="".join(delta.reasoning for delta in deltas),
        )


def _sampling(options: Mapping[str, Any]) -> chat_pb2.SamplingParams:
    params = chat_pb2.SamplingParams()
    for name, value in options.items():
        if name not in Options.__annotations__:
            known = ", ".join(Options.__annotations__)
            raise TypeError(f"unknown argument {name!r}; known are {known}")
        if value is None or name in _OF_CHAT:
            continue
        if name == "stop" and isinstance(value, str):
            value = [value]
        try:
            if name in ("stop", "stop_token_ids", "bad_words", "allowed_token_ids"):
                getattr(params, name).extend(value)
            elif name == "logit_bias":
                params.logit_bias.update(value)
            elif name == "structured_output":
                params.structured_output.CopyFrom(_structured_output(value))
            else:
                setattr(params, name, value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
    return params


def _structured_output(wanted: Mapping[str, Any]) -> chat_pb2.StructuredOutput:
    is_compact = wanted.get("disable_any_whitespace", False)
    given = [(name, value) for name, value in wanted.items() if name != "disable_any_whitespace"]
    if len(given) != 1 or not wanted.keys() <= StructuredOutput.__annotations__.keys():
        known = ", ".join(StructuredOutput.__annotations__)
        raise TypeError(f"takes exactly one of {known}")
    ((name, value),) = given
    if name == "choice":
        value = chat_pb2.StringChoices(values=value)
    if name == "json_schema" and not isinstance(value, str):
        value = json.dumps(value)
    return chat_pb2.StructuredOutput(**{name: value}, disable_any_whitespace=is_compact)
