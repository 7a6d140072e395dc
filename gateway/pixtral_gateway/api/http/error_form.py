"""The form of an API's errors, as a whole answer and at the end of a stream."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pixtral_core.errors import ServingError
from pixtral_gateway.api.openai.errors import body_of

# The key in a request's scope under which a stream puts its own writer of errors.
STREAM_ERROR = "pixtral.stream_error"


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """`body` makes the answer to a request that fails, and `event` the last event of a stream that
    fails.

    `request_id` is a header beside `x-request-id` in which the API's clients look for the id.
    """

    body: Callable[[ServingError], Mapping[str, Any]]
    event: Callable[[ServingError], bytes]
    request_id: str | None = None


def _openai_event(error: ServingError) -> bytes:
    return b"data: " + json.dumps(body_of(error)).encode() + b"\n\ndata: [DONE]\n\n"


OPENAI = ErrorForm(body_of, _openai_event)
