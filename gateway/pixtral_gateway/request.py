"""What a client asks for, and what it is told at the end."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pixtral.v1 import chat_pb2
from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.telemetry.request_log import current_span, note
from pixtral_gateway.checks.conversation import Conversation
from pixtral_gateway.tenancy.tenants import Tenant


@dataclass(slots=True)
class SoFar:
    """What is known of an answer before its end: the tokens of its prompt, once that is made."""

    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client asks for. `arrival` is on the monotonic clock, in seconds.

    `adapter` is that of the model which is to answer, empty for the model itself; of requests that
    wait, those of a lower `priority` go first.
    """

    id: str
    tenant: Tenant
    conversation: Conversation
    sampling: chat_pb2.SamplingParams
    arrival: float
    deadline: Deadline
    adapter: str = ""
    priority: int = 0
    so_far: SoFar = field(default_factory=SoFar)

    @classmethod
    def begin(
        cls,
        completion_id: str,
        model: str,
        tenant: Tenant,
        conversation: Conversation,
        sampling: chat_pb2.SamplingParams,
        *,
        arrival: float,
        seconds: float,
        adapter: str = "",
        priority: int = 0,
    ) -> "Ask":
        """What the current call asks for, to be answered within `seconds` of its arrival.

        Raises InvalidRequest for a priority that the tenant may not ask for.
        """
        tenant.check_priority(priority)
        note(completion_id=completion_id)
        current_span().set(operation="chat", model=adapter or model)
        deadline = Deadline(arrival + seconds)
        return cls(
            completion_id, tenant, conversation, sampling, arrival, deadline, adapter, priority
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """In tokens; image and cached ones are among the prompt's."""

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """In seconds: the waits for the engine and for images, then the time since the arrival."""

    queue: float
    encode: float
    time_to_first_token: float
    total: float


@dataclass(frozen=True, slots=True)
class ImageReport:
    """`encode` in seconds: the wait for this image, zero where it was cached."""

    sha256: str
    width: int
    height: int
    tokens: int
    cached: bool
    encode: float


@dataclass(frozen=True, slots=True)
class Finished:
    """What is known of a request at its end, `images` in the order of the conversation.

    `prompt_logprobs` are one for each of the prompt's tokens, where they were asked for.
    """

    usage: Usage
    timings: Timings
    images: tuple[ImageReport, ...]
    prompt_logprobs: Sequence[chat_pb2.TokenLogprobs] = ()
