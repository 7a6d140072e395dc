import logging
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from pixtral_core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServingError,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
    to_status,
)
from tests.support.echo_tier import Context, EchoTier, echo

FAILURES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def received(status: Any) -> grpc.aio.AioRpcError:
    """The part of a status that a client sees."""
    trailing = grpc.aio.Metadata(*status.trailing_metadata)
    return grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailing, status.details)


def parts(error: ServingError) -> tuple[Any, ...]:
    return (
        error.code,
        error.reason,
        error.message,
        error.violations,
        error.retry_after,
        error.metadata,
    )


@given(
    code=st.sampled_from(FAILURES),
    reason=st.from_regex(r"[A-Z][A-Z0-9_]{0,30}", fullmatch=True),
    message=texts,
    violations=st.lists(st.tuples(texts, texts), max_size=4),
    retry_after=st.none() | st.integers(0, 10**7).map(lambda ms: ms / 1000),
    metadata=st.dictionaries(texts, texts, max_size=3),
)
def test_an_error_survives_the_wire(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    violations: list[tuple[str, str]],
    retry_after: float | None,
    metadata: dict[str, str],
) -> None:
    sent = ServingError(
        code,
        reason,
        message,
        violations=violations,
        retry_after=retry_after,
        metadata=metadata,
    )
    assert parts(from_rpc_error(received(to_status(sent)))) == parts(sent)


def test_within_a_field_an_error_changes_its_paths_alone() -> None:
    inner = NotFound("no such image", "LOST", {"images": "1"}, [("messages[1].image", "is not")])
    outer = inner.within("chat")
    assert outer.violations == (("chat.messages[1].image", "is not"),)
    outer.violations = inner.violations
    assert parts(outer) == parts(inner)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("messages[0].content", "must not be empty"),
        NotFound("no such model", "MODEL_NOT_FOUND"),
        FailedPrecondition("gone", "EMBEDDING_MISSING", {"images": "0,2"}),
        Overloaded("full", 2.5),
        Unavailable("loading"),
        DeadlineExceeded(),
        Unauthenticated("no key", "API_KEY_MISSING"),
    ],
)
async def test_a_raised_error_is_read_back_as_its_class(error: ServingError) -> None:
    async def unary(request: StringValue, context: Context) -> StringValue:
        raise error

    async with echo(EchoTier(unary=unary)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.unary(StringValue())
        read = from_rpc_error(failed.value)
    assert type(read) is type(error)
    assert parts(read) == parts(error)


async def test_details_are_those_of_google_rpc() -> None:
    async def unary(request: StringValue, context: Context) -> StringValue:
        raise InvalidRequest("messages[1].content[0].image", "is not an image", "BAD_IMAGE")

    async with echo(EchoTier(unary=unary)) as stub:
        call = stub.unary(StringValue())
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        status = await rpc_status.aio.from_call(call)
    assert status is not None
    names = [detail.TypeName() for detail in status.details]
    assert names == ["google.rpc.ErrorInfo", "google.rpc.BadRequest"]
    assert "messages[1].content[0].image" in str(status)
    assert status.message == "messages[1].content[0].image: is not an image"


@pytest.mark.parametrize("letter", ["x", "é", "\U0001f600", "%", "\n"])
async def test_the_largest_error_reaches_the_client(letter: str) -> None:
    long = letter * 5000

    async def unary(request: StringValue, context: Context) -> StringValue:
        raise ServingError(
            grpc.StatusCode.INVALID_ARGUMENT, "LONG", long, violations=[(long, long)] * 100
        )

    async with echo(EchoTier(unary=unary)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.unary(StringValue())
    read = from_rpc_error(failed.value)
    assert (read.code, read.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "LONG")
    assert read.message
    assert long.startswith(read.message)
    assert read.violations


@pytest.mark.parametrize(("count", "most"), [(64, 64), (5000, 400)])
async def test_many_short_violations_reach_the_client(count: int, most: int) -> None:
    async def unary(request: StringValue, context: Context) -> StringValue:
        violations = [(f"messages[{i}].content[0].image.sha256", "") for i in range(count)]
        raise NotFound("x" * 5000, "LOST", violations=violations)

    async with echo(EchoTier(unary=unary)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.unary(StringValue())
    read = from_rpc_error(failed.value)
    assert read.reason == "LOST"
    assert min(count, 64) <= len(read.violations) <= most


async def test_an_unexpected_error_is_logged_without_its_message_and_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def unary(request: StringValue, context: Context) -> StringValue:
        raise KeyError("password of the database")

    async with echo(EchoTier(unary=unary)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.unary(StringValue())
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert failed.value.details() == "internal error"
    assert "password" not in str(failed.value.trailing_metadata())
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "KeyError" in record.message
    assert "in unary" in record.message
    assert record.exc_info is None
    # The line of the source quotes the text here; what was raised is never formatted.
    assert "KeyError: 'password" not in caplog.text


async def test_a_status_without_our_details_keeps_its_code_and_none_of_its_text() -> None:
    async def unary(request: StringValue, context: Context) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "10.0.0.7 refused")

    async with echo(EchoTier(unary=unary)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.unary(StringValue())
    read = from_rpc_error(failed.value)
    assert isinstance(read, Unavailable)
    assert read.reason == "UNAVAILABLE"
    assert "10.0.0.7" not in read.message


def test_another_projects_details_are_not_relayed() -> None:
    status = Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="no row 7 in table secrets")
    status.details.add().Pack(ErrorInfo(reason="NO_ROW", domain="other.example"))
    read = from_rpc_error(received(rpc_status.to_status(status)))
    assert isinstance(read, NotFound)
    assert read.reason == "UNKNOWN"
    assert "secrets" not in read.message


@given(st.binary(max_size=200))
def test_details_that_are_noise_are_no_error_of_their_own(noise: bytes) -> None:
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", noise))
    error = grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailing, "text")
    assert from_rpc_error(error).code is grpc.StatusCode.ABORTED


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("chat.messages[1].role", "chat.messages[1].role"),
        ("tools[0].parameters.properties.secret", "tools[0].parameters"),
        (
            "sampling.structured_output.json_schema.secret",
            "sampling.structured_output.json_schema",
        ),
    ],
)
def test_a_log_line_has_the_field_but_no_names_that_a_client_gives(path: str, logged: str) -> None:
    assert InvalidRequest(path, "is wrong").facts == {"reason": "INVALID_FIELD", "field": logged}
    assert Overloaded("full").facts == {"reason": "OVERLOADED"}
