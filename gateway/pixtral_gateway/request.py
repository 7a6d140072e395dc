"""A request to the gateway, and the events that answer it, as plain data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar

from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.generation.logprobs import TokenLogprobs
from pixtral_core.generation.sampling import Sampling
from pixtral_core.telemetry.request_log import current_span, note
from pixtral_gateway.checks.conversation import NO_TOOLS, Conversation, ImageSource, Tools
from pixtral_gateway.tenancy.tenants import Tenant


class FinishReason(StrEnum):
    """Why a choice ended: at the end of sequence or a stop, at a limit of tokens, or with tool
    calls."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """A prompt outside any conversation, which the model continues as it stands.

    It has either a text, which begins a sequence if `bos` is set, or token ids. It has no images.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    bos: bool = True

    images: ClassVar[Sequence[ImageSource]] = ()
    tools: ClassVar[Tools] = NO_TOOLS


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to make, of `sampling.n` choices.

    Attributes:
        id: the completion's id, which the client gets.
        conversation: the conversation to answer, or the prompt to continue.
        arrival: time of its arrival on the monotonic clock, in seconds.
        adapter: name of the LoRA adapter that answers; empty for the model itself.
        priority: requests with a lower number leave the engine's queue first.
        is_gathered: whether the client gets the whole answer at its end, so that the gateway
            stores it until then.
    """

    id: str
    tenant: Tenant
    conversation: Conversation | RawPrompt
    sampling: Sampling
    arrival: float
    deadline: Deadline
    adapter: str = ""
    priority: int = 0
    is_gathered: bool = False

    @classmethod
    def begin(
        cls,
        completion_id: str,
        model: str,
        tenant: Tenant,
        conversation: Conversation | RawPrompt,
        sampling: Sampling,
        *,
        arrival: float,
        seconds: float,
        adapter: str = "",
        priority: int = 0,
        is_gathered: bool = False,
    ) -> "Request":
        """The current call's request, which must be answered within `seconds` of its arrival.

        Raises InvalidRequest for a priority that the tenant may not use.
        """
        tenant.check_priority(priority)
        note(completion_id=completion_id)
        operation = "text_completion" if isinstance(conversation, RawPrompt) else "chat"
        current_span().set(operation=operation, model=adapter or model)
        deadline = Deadline(arrival + seconds)
        return cls(
            completion_id,
            tenant,
            conversation,
            sampling,
            arrival,
            deadline,
            adapter,
            priority,
            is_gathered,
        )


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """New parts of the choice's tool call `index`: id and name first, then more of `arguments`."""

    index: int
    arguments: str
    id: str = ""
    name: str = ""


def whole_calls(pieces: Iterable[ToolCallDelta]) -> list[ToolCallDelta]:
    """The tool calls that the deltas of one choice add up to, in the order of their indexes."""
    first: list[ToolCallDelta] = []
    arguments: list[list[str]] = []
    for piece in pieces:
        if piece.index == len(first):
            first.append(piece)
            arguments.append([])
        arguments[piece.index].append(piece.arguments)
    return [
        replace(call, arguments="".join(parts))
        for call, parts in zip(first, arguments, strict=True)
    ]


# The class is not frozen: every token makes an object, and a frozen one takes several times as
# long.
@dataclass(slots=True)
class Delta:
    """New parts of one choice. No code may change a delta.

    Attributes:
        index: index of the choice, from 0 to `sampling.n` - 1.
        finish_reason: set in the choice's last delta only.
        logprobs: an entry for each of `token_ids`, if the request asks for log-probabilities.
        prompt_logprobs: the next part of the prompt's log-probabilities, which come before the
            first token.
        cached_tokens: prompt tokens whose keys and values the decoder had; in the first delta.
        queue: seconds that the request waited for the engine; in the first delta.
        stop_reason: in the last delta, the stop string or the id of the stop token that ended the
            choice; None if the model ended it.
        reasoning: the model's thoughts before its answer, which are not part of `text`.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    cached_tokens: int = 0
    queue: float = 0.0
    stop_reason: str | int | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Begun:
    """The first event of a completion."""

    prompt_token_ids: Sequence[int]

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of tokens. Prompt tokens include image tokens and cached tokens; completion tokens
    include reasoning tokens."""

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: the waits for the engine and for images, and the times to the first token and to the
    end."""

    queue: float
    encode: float
    time_to_first_token: float
    total: float


@dataclass(frozen=True, slots=True)
class ImageReport:
    """A report on one image. `encode` is the seconds that the request waited for its encoding; zero
    if the image was cached."""

    sha256: str
    width: int
    height: int
    tokens: int
    cached: bool
    encode: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a completion.

    `images` are in the order of the conversation. `prompt_logprobs` has an entry for each token of
    the prompt, if the request asks for them.
    """

    usage: Usage
    timings: Timings
    images: tuple[ImageReport, ...]
    prompt_logprobs: Sequence[TokenLogprobs] = ()


Event = Begun | Delta | Finished
