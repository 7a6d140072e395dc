"""The errors of an RPC: exceptions in Python, and gRPC statuses with google.rpc details on the
wire."""

import logging
import re
import traceback
from collections.abc import Mapping, Sequence
from functools import lru_cache

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

logger = logging.getLogger(__name__)

DOMAIN = "pixtral"
DETAILS_KEY = "grpc-status-details-bin"

# A client refuses trailing metadata above 8 KiB, and then sees nothing of the error. All texts are
# sent in base64, and the message a second time with up to three bytes for each of its bytes.
MAX_TEXT_BYTES = 512
MAX_FIELD_BYTES = 256
# The bytes of all violations together, and of the frame that each of them needs.
MAX_VIOLATION_BYTES = 3200
VIOLATION_FRAME_BYTES = 10

# After one of these fields, a path has names that the client chose, such as those of a schema's
# properties.
_SCHEMA = re.compile(r".*?\b(?:parameters|json_schema|json)\b")


class ServingError(Exception):
    """A failure that the client sees.

    `reason` is a name of pixtral.v1.ErrorReason without its prefix, `message` and `violations`
    (path of the field, what is wrong with it) are safe to show, `retry_after` is in seconds,
    `metadata` goes into ErrorInfo. Texts are cut at 512 bytes, paths at 256, violations at 3200 in
    all.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        violations: Sequence[tuple[str, str]] = (),
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.code = code
        self.reason = reason
        self.message = _cut(message, MAX_TEXT_BYTES)
        self.violations = _fitting(violations)
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})
        super().__init__(self.message)

    @property
    def facts(self) -> dict[str, str]:
        """The part of the error for a log line: its reason, and the path of the wrong field."""
        if not self.violations:
            return {"reason": self.reason}
        path = self.violations[0][0]
        schema = _SCHEMA.match(path)
        return {"reason": self.reason, "field": schema[0] if schema else path}

    def within(self, field: str) -> "ServingError":
        """The same error for an outer request, whose `field` contains the request of this error."""
        return ServingError(
            self.code,
            self.reason,
            self.message,
            violations=[(f"{field}.{path}", wrong) for path, wrong in self.violations],
            retry_after=self.retry_after,
            metadata=self.metadata,
        )


def _fitting(violations: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    kept, left = [], MAX_VIOLATION_BYTES
    for field, description in violations:
        pair = _cut(field, MAX_FIELD_BYTES), _cut(description, MAX_TEXT_BYTES)
        left -= sum(len(text.encode()) for text in pair) + VIOLATION_FRAME_BYTES
        if left < 0:
            break
        kept.append(pair)
    return tuple(kept)


def _cut(text: str, size: int) -> str:
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


class InvalidRequest(ServingError):
    """The request is wrong, and would fail again; `field` is a path in the request's proto."""

    def __init__(self, field: str, description: str, reason: str = "INVALID_FIELD") -> None:
        super().__init__(
            grpc.StatusCode.INVALID_ARGUMENT,
            reason,
            f"{field}: {description}",
            violations=((field, description),),
        )


class NotFound(ServingError):
    def __init__(
        self,
        message: str,
        reason: str,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(
            grpc.StatusCode.NOT_FOUND, reason, message, metadata=metadata, violations=violations
        )


class FailedPrecondition(ServingError):
    def __init__(
        self, message: str, reason: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(grpc.StatusCode.FAILED_PRECONDITION, reason, message, metadata=metadata)


class Overloaded(ServingError):
    """There is no room now; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0, reason: str = "OVERLOADED") -> None:
        super().__init__(
            grpc.StatusCode.RESOURCE_EXHAUSTED, reason, message, retry_after=retry_after
        )


class Unavailable(ServingError):
    """The service cannot answer the call now; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0, reason: str = "UNAVAILABLE") -> None:
        super().__init__(grpc.StatusCode.UNAVAILABLE, reason, message, retry_after=retry_after)


class DeadlineExceeded(ServingError):
    def __init__(
        self, message: str = "the deadline has passed", reason: str = "DEADLINE_EXCEEDED"
    ) -> None:
        super().__init__(grpc.StatusCode.DEADLINE_EXCEEDED, reason, message)


class Unauthenticated(ServingError):
    def __init__(self, message: str, reason: str) -> None:
        super().__init__(grpc.StatusCode.UNAUTHENTICATED, reason, message)


_CLASSES: dict[grpc.StatusCode, type[ServingError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}

# gRPC's own texts contain addresses and names of files. These messages replace them in a status
# from another server.
_MESSAGES = {
    grpc.StatusCode.UNAVAILABLE: "the service cannot be reached",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the deadline has passed",
    grpc.StatusCode.CANCELLED: "the call was cancelled",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "a limit of the service was reached",
    grpc.StatusCode.UNIMPLEMENTED: "the service does not know this method",
    grpc.StatusCode.INTERNAL: "the call failed",
}


def client_error(error: BaseException) -> ServingError:
    """The part of an error that a client sees.

    An error that is not a ServingError is a bug: its type and its traceback are logged, and the
    client gets only "internal error".
    """
    if isinstance(error, ServingError):
        return error
    log_place(error, "unexpected", logging.ERROR)
    return ServingError(grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")


def log_place(error: BaseException, what: str, level: int) -> None:
    """Logs an error's type and where it was raised, without its text, which may quote a prompt."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.log(level, "%s: %s\n%s", what, type(error).__name__, where)


def to_status(error: BaseException) -> grpc.Status:
    """The rich gRPC status of an error, as `client_error` returns it."""
    error = client_error(error)
    metadata = tuple(error.metadata.items())
    return _status(
        error.code, error.reason, error.message, error.violations, error.retry_after, metadata
    )


# Under overload, many calls get the same status.
@lru_cache(64)
def _status(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    violations: tuple[tuple[str, str], ...],
    retry_after: float | None,
    metadata: tuple[tuple[str, str], ...],
) -> grpc.Status:
    status = Status(code=code.value[0], message=message)
    info = ErrorInfo(reason=reason, domain=DOMAIN, metadata=dict(metadata))
    status.details.add().Pack(info)
    if violations:
        request = BadRequest()
        for field, description in violations:
            request.field_violations.add(field=field, description=description)
        status.details.add().Pack(request)
    if retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(round(retry_after * 1e9))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    return rpc_status.to_status(status)


def from_rpc_error(error: grpc.aio.AioRpcError) -> ServingError:
    """The error of the other side, as an instance of the class for its code.

    A status without this project's details keeps its code, and gets a message of `_MESSAGES`. Its
    reason is the code's name if gRPC itself ends calls with that code, and UNKNOWN otherwise.
    """
    code = error.code()
    made = _CLASSES.get(code, ServingError)
    result = made.__new__(made)
    try:
        details = _read_details(error)
    except (DecodeError, ValueError):
        details = None
    if details is None:
        reason = code.name if code in _MESSAGES else "UNKNOWN"
        ServingError.__init__(result, code, reason, _MESSAGES.get(code, "the call failed"))
        return result
    message, info, request, retry = details
    ServingError.__init__(
        result,
        code,
        info.reason,
        message,
        violations=[(each.field, each.description) for each in request.field_violations],
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9
        if retry.HasField("retry_delay")
        else None,
        metadata=info.metadata,
    )
    return result


def _read_details(
    error: grpc.aio.AioRpcError,
) -> tuple[str, ErrorInfo, BadRequest, RetryInfo] | None:
    value = next((value for key, value in error.trailing_metadata() if key == DETAILS_KEY), None)
    if not isinstance(value, bytes):
        return None
    status = Status.FromString(value)
    details = ErrorInfo(), BadRequest(), RetryInfo()
    for packed in status.details:
        for detail in details:
            packed.Unpack(detail)
    if status.code != error.code().value[0] or details[0].domain != DOMAIN:
        return None
    return status.message, *details


class StartupError(Exception):
    """The process cannot start, for a reason that the operator can correct. It is logged in one
    line."""
