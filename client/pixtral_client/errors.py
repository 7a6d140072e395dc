"""The errors of an RPC, with the details that the server gives."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn, cast

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """A field of the request, such as `messages[1].content[0].image.url`, and what is wrong."""

    field: str
    description: str


class PixtralError(Exception):
    """A failed RPC.

    Attributes:
        code: the gRPC status code.
        reason: a name of `pixtral.v1.ErrorReason` without its prefix, such as IMAGE_NOT_FOUND;
            empty if the server gave none.
        message: what went wrong, in a sentence.
        violations: the fields at fault.
        retry_after: seconds after which a retry may succeed; None if the server gave none.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        violations: tuple[Violation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.violations = violations
        self.retry_after = retry_after

    def __str__(self) -> str:
        text = f"{self.code.name}: {self.message}"
        fields = "; ".join(f"{item.field}: {item.description}" for item in self.violations)
        if fields and fields not in text:
            text += f" ({fields})"
        if self.retry_after is not None:
            text += f" (retry after {self.retry_after:g} s)"
        return text


class InvalidRequest(PixtralError):
    """The request can never succeed unchanged; `violations` names the fields."""


class NotFound(PixtralError):
    """The model does not exist, or the gateway lacks an image that the request names."""


class Overloaded(PixtralError):
    """The server refused the request because of overload; try again after `retry_after`."""


class Unavailable(PixtralError):
    """The server is gone, not ready, or unable to do this now."""


class DeadlineExceeded(PixtralError):
    """The timeout has passed, and the server has stopped working on the request."""


_CLASSES: dict[grpc.StatusCode, type[PixtralError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def raise_from(error: grpc.RpcError) -> NoReturn:
    """Raises the `PixtralError` of a failed RPC, sync or asyncio."""
    raise from_rpc_error(error) from None


def from_rpc_error(error: grpc.RpcError) -> PixtralError:
    code, message = error.code(), error.details() or ""
    reason, retry_after = "", None
    violations: tuple[Violation, ...] = ()
    for detail in _details(error):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            # The request has the caller's arguments in its field `chat`, which callers do not see.
            violations = tuple(
                Violation(item.field.removeprefix("chat."), item.description)
                for item in bad.field_violations
            )
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    made = _CLASSES.get(code, PixtralError)
    if made is Overloaded and not reason:
        # gRPC itself refuses a message above its limit, so another try would fail, too.
        made = PixtralError
    return made(code, message, reason=reason, violations=violations, retry_after=retry_after)


def _details(error: grpc.RpcError) -> list[Any]:
    metadata = dict(cast(Iterable[tuple[str, bytes]], error.trailing_metadata() or ()))
    try:
        return list(status_pb2.Status.FromString(metadata.get(_DETAILS_KEY, b"")).details)
    except DecodeError:
        return []
