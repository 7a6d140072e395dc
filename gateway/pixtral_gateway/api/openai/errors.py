"""The gateway's errors in the form of OpenAI's API: a status, headers and a body."""

import math
import re
from collections.abc import Callable, Mapping

import grpc

from pixtral_core.errors import ServingError
from pixtral_gateway.api.openai.response_schema import ErrorAnswer, ErrorType

_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_TYPES: dict[int, ErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_RETRIED = frozenset({429, 503})

# The reasons for which OpenAI's API has a code of its own, which clients look for.
_CODES = {
    "INVALID_FIELD": "invalid_value",
    "PROMPT_TOO_LONG": "context_length_exceeded",
    "OVERLOADED": "rate_limit_exceeded",
    "TENANT_LIMIT": "rate_limit_exceeded",
    "API_KEY_MISSING": "invalid_api_key",
    "API_KEY_INVALID": "invalid_api_key",
}

_OF_FUNCTION = re.compile(
    r"^(tools\.\d+|tool_choice|messages\.\d+\.tool_calls\.\d+)"
    r"\.(name|description|parameters|arguments)\b"
)


class Refused(ServingError):
    """An error that only HTTP has; `headers` go with the answer."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, reason, message)
        self.status = status
        self.headers = dict(headers or {})


def status_of(error: ServingError) -> int:
    return error.status if isinstance(error, Refused) else _STATUSES.get(error.code, 500)


def headers_of(error: ServingError) -> dict[str, str]:
    headers = dict(error.headers) if isinstance(error, Refused) else {}
    if status_of(error) == 401:
        headers["www-authenticate"] = "Bearer"
    if status_of(error) in _RETRIED:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after or 1)))
    return headers


def body_of(error: ServingError, name_of: Callable[[str], str] | None = None) -> ErrorAnswer:
    """`param` is the path of the field in the API's own form, from `name_of`, or from `param_of`
    without it."""
    status = status_of(error)
    message, param = error.message, None
    if error.violations:
        field, description = error.violations[0]
        param = (name_of or param_of)(field)
        message = f"{param}: {description}"
    return {
        "error": {
            "message": message,
            "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
            "param": param,
            "code": _CODES.get(error.reason, error.reason.lower()),
        }
    }


def param_of(field: str) -> str:
    """`messages[1].role` becomes `messages.1.role`, and `sampling.top_p` becomes `top_p`. Fields
    that OpenAI has in the `function` of a tool or a tool call get that name, too."""
    return _OF_FUNCTION.sub(r"\1.function.\2", flat_param_of(field))


def flat_param_of(field: str) -> str:
    """Like `param_of`, for APIs whose tools have no `function`."""
    return re.sub(r"\[(\d+)\]", r".\1", field.removeprefix("sampling."))
