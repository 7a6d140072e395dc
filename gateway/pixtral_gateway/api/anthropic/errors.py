"""The gateway's errors as Anthropic's clients know them."""

import json

from pixtral_core.errors import ServingError
from pixtral_gateway.api.anthropic.response_schema import MessageError, MessageErrorType
from pixtral_gateway.api.http.error_form import ErrorForm
from pixtral_gateway.api.openai.errors import flat_param_of, status_of

_TYPES: dict[int, MessageErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def body_of(error: ServingError) -> MessageError:
    """The message begins with the path of the field that is wrong."""
    status = status_of(error)
    message = error.message
    if error.violations:
        field, description = error.violations[0]
        message = f"{flat_param_of(field)}: {description}"
    other: MessageErrorType = "invalid_request_error" if status < 500 else "api_error"
    return {"type": "error", "error": {"type": _TYPES.get(status, other), "message": message}}


def _event(error: ServingError) -> bytes:
    return b"event: error\ndata: " + json.dumps(body_of(error)).encode() + b"\n\n"


FORM = ErrorForm(body_of, _event, request_id="request-id")
