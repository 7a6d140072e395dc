"""The results of RPCs. Durations are in seconds; token ids are those of the model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from google.protobuf.duration_pb2 import Duration

from pixtral.v1 import chat_pb2

FinishReason = Literal["stop", "length", "tool_calls"]

_FINISH_REASONS: dict[int, FinishReason] = {
    chat_pb2.FINISH_REASON_STOP: "stop",
    chat_pb2.FINISH_REASON_LENGTH: "length",
    chat_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request; prompt tokens include image and cached tokens."""

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """The time that parts of a request took, in seconds.

    Attributes:
        queue: wait in the engine's queue.
        encode: wait for the images.
        time_to_first_token: from arrival at the gateway to the first token.
        total: from arrival at the gateway to the end.
    """

    queue: float
    encode: float
    time_to_first_token: float
    total: float


@dataclass(frozen=True, slots=True)
class ImageReport:
    """The outcome of one image.

    Attributes:
        sha256: SHA-256 of the file, in hexadecimal digits.
        width: width of the image in pixels.
        height: height of the image in pixels.
        tokens: tokens of the image in the prompt.
        cached: whether the request needed no encoder for this image.
        encode: wait for this image to be encoded, in seconds.
    """

    sha256: str
    width: int
    height: int
    tokens: int
    cached: bool
    encode: float


@dataclass(frozen=True, slots=True)
class UploadedImage:
    """An image that the gateway keeps for a while; use it in messages in place of the image.

    `tokens` counts the image's tokens in a prompt.
    """

    sha256: str
    width: int
    height: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token that the model could pick; its text is empty if it is a part of a character.

    `rank` is its rank among all tokens; the likeliest has 1.
    """

    token_id: int
    text: str
    logprob: float
    rank: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The likelihood of a token, and the likeliest tokens in its place, the likeliest first."""

    chosen: Logprob
    top: tuple[Logprob, ...]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call; in a stream, the new part of one.

    `arguments` should be a JSON object. Only a `tool_choice` that forces the call guarantees that.
    In a stream, the first part of each `index` has id and name, and further parts have arguments.
    """

    id: str
    name: str
    arguments: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """The new part of a stream.

    Attributes:
        text: the new text, without tool calls and reasoning.
        token_ids: the new tokens.
        finish_reason: None until the last delta.
        logprobs: one for each token, if the request asked for them.
        index: index of the choice.
        tool_calls: new parts of tool calls.
        stop_reason: the stop string or the id of the stop token that ended the answer; None if the
            model ended it.
        reasoning: the new part of what a reasoning model writes before its answer.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprobs, ...] = ()
    index: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    stop_reason: str | int | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to a request."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprobs, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    stop_reason: str | int | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer.

    If the request asked for `n` answers, `choices` has all of them. The fields text, reasoning,
    token_ids, finish_reason, stop_reason, logprobs and tool_calls are those of the first.

    Attributes:
        model: the gateway's name of the model that answered.
        images: reports in the order of the conversation.
        prompt_logprobs: one for each prompt token, if the request asked for them; None for the
            first token, which no token precedes.
    """

    id: str
    model: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    usage: Usage
    timings: Timings
    images: tuple[ImageReport, ...]
    logprobs: tuple[TokenLogprobs, ...]
    choices: tuple[Choice, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    stop_reason: str | int | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of a prompt; `prompt_tokens` includes `image_tokens`."""

    prompt_tokens: int
    image_tokens: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the gateway serves.

    Attributes:
        name: its name in requests.
        context_length: the most tokens of prompt and answer together.
        max_images: the most images of a request.
        max_image_bytes: the most bytes of an image file.
        parent: the base model of an adapter; empty for a model of its own.
    """

    name: str
    context_length: int
    max_images: int
    max_image_bytes: int
    parent: str = ""


def delta_from_proto(choice: chat_pb2.Choice) -> Delta:
    return Delta(
        choice.text,
        tuple(choice.token_ids),
        _FINISH_REASONS.get(choice.finish_reason),
        tuple(_token_logprobs(each) for each in choice.logprobs),
        choice.index,
        tuple(ToolCall(c.id, c.name, c.arguments, c.index) for c in choice.tool_calls),
        _stop_reason(choice),
        choice.reasoning,
    )


def completion_from_proto(
    answers: Sequence[Delta], summary: chat_pb2.Completion, *, call_id: str, model: str
) -> Completion:
    """Makes a completion; `answers` are the whole choices, in the order of their indexes."""
    answer, usage, timings = answers[0], summary.usage, summary.timings
    return Completion(
        id=call_id,
        model=model,
        text=answer.text,
        token_ids=answer.token_ids,
        finish_reason=answer.finish_reason,
        usage=Usage(
            prompt_tokens=usage.prompt_tokens,
            image_tokens=usage.image_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            reasoning_tokens=usage.reasoning_tokens,
        ),
        timings=Timings(
            queue=_seconds(timings.queue),
            encode=_seconds(timings.encode),
            time_to_first_token=_seconds(timings.time_to_first_token),
            total=_seconds(timings.total),
        ),
        images=tuple(
            ImageReport(
                sha256=image.sha256,
                width=image.width,
                height=image.height,
                tokens=image.tokens,
                cached=image.cached,
                encode=_seconds(image.encode),
            )
            for image in summary.images
        ),
        logprobs=answer.logprobs,
        choices=tuple(
            Choice(
                each.index,
                each.text,
                each.token_ids,
                each.finish_reason,
                each.logprobs,
                each.tool_calls,
                each.stop_reason,
                each.reasoning,
            )
            for each in answers
        ),
        tool_calls=answer.tool_calls,
        prompt_logprobs=tuple(
            _token_logprobs(each) if each.HasField("chosen") else None
            for each in summary.prompt_logprobs
        ),
        stop_reason=answer.stop_reason,
        reasoning=answer.reasoning,
    )


def joined_calls(pieces: Iterable[ToolCall]) -> tuple[ToolCall, ...]:
    """Joins the parts of a stream into whole tool calls."""
    calls: dict[int, ToolCall] = {}
    for piece in pieces:
        begun = calls.get(piece.index)
        if begun is not None:
            piece = replace(begun, arguments=begun.arguments + piece.arguments)
        calls[piece.index] = piece
    return tuple(calls.values())


def models_from_proto(response: chat_pb2.ListModelsResponse) -> list[Model]:
    return [
        Model(
            model.name,
            model.context_length,
            model.max_images,
            model.max_image_bytes,
            model.parent,
        )
        for model in response.models
    ]


def uploaded_from_proto(response: chat_pb2.PutImageResponse) -> UploadedImage:
    return UploadedImage(response.sha256, response.width, response.height, response.tokens)


def _stop_reason(choice: chat_pb2.Choice) -> str | int | None:
    match choice.WhichOneof("stop_reason"):
        case "stop_string":
            return choice.stop_string
        case "stop_token_id":
            return choice.stop_token_id
        case _:
            return None


def _token_logprobs(position: chat_pb2.TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(_logprob(position.chosen), tuple(map(_logprob, position.top)))


def _logprob(each: chat_pb2.Logprob) -> Logprob:
    return Logprob(each.token_id, each.text, each.logprob, each.rank)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
