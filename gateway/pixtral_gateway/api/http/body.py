"""Reads the body of an HTTP request, within bounds of size, and parses it."""

import asyncio
from functools import lru_cache
from itertools import takewhile
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from pixtral_core import limits
from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.errors import InvalidRequest, Overloaded
from pixtral_core.server.channel import MAX_MESSAGE_BYTES
from pixtral_gateway.api.http.body_problem import said_of
from pixtral_gateway.api.http.middleware import ClientGone
from pixtral_gateway.api.openai.errors import Refused
from pixtral_gateway.images.image_reader import OFFLOAD_BYTES

# As much as gRPC takes in a message.
MAX_BODY_BYTES = MAX_MESSAGE_BYTES
# Of all requests that do not hold a permit yet: some thirty with the largest image each.
MAX_BYTES_AT_ONCE = 12 * MAX_BODY_BYTES
# Of an index, or of a token's id.
MAX_DIGITS = 10

M = TypeVar("M", bound=BaseModel)


class Bodies:
    """Reads bodies, all at once together no more than MAX_BYTES_AT_ONCE.

    Only what is read and parsed has a permit to ask for.
    """

    def __init__(self) -> None:
        self._held = 0

    async def read(self, request: Request, model: type[M], deadline: Deadline) -> M:
        """The body as a `model`. Raises Refused, Overloaded, and InvalidRequest naming a field."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Nor may a page in a browser send it to another site without asking that one first.
            raise Refused(
                415, "UNSUPPORTED_MEDIA_TYPE", "the content type must be application/json"
            )
        told = request.headers.get("content-length", "")
        if told.isascii() and told.isdigit() and int(told[:20]) > MAX_BODY_BYTES:
            raise _too_large()
        body = bytearray()
        try:
            await self._receive(request, body, deadline)
            if len(body) > OFFLOAD_BYTES:
                return await asyncio.to_thread(_parse, model, body)
            return _parse(model, body)
        finally:
            self._held -= len(body)

    async def _receive(self, request: Request, body: bytearray, deadline: Deadline) -> None:
        try:
            async with asyncio.timeout(deadline.remaining()):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > MAX_BODY_BYTES:
                        raise _too_large()
                    if self._held + len(chunk) > MAX_BYTES_AT_ONCE:
                        raise Overloaded("as much as this gateway reads at once is being sent")
                    body += chunk
                    self._held += len(chunk)
        except ClientDisconnect:
            raise ClientGone from None
        except TimeoutError:
            raise Refused(408, "REQUEST_TIMEOUT", "the body did not come in time") from None


def _too_large() -> Refused:
    return Refused(413, "BODY_TOO_LARGE", f"the body is larger than {MAX_BODY_BYTES} bytes")


def _parse(model: type[M], body: bytearray) -> M:
    if sum(map(body.count, (b",", b"{", b"["))) > limits.BODY_VALUES.most:
        raise Refused(413, "BODY_TOO_LARGE", f"a request must have {limits.BODY_VALUES}")
    try:
        return model.model_validate_json(body)
    except ValidationError as failure:
        problem = failure.errors(include_url=False)[0]
    if problem["type"] == "json_invalid":
        raise Refused(400, "MALFORMED_JSON", "the body is not valid JSON")
    if not problem["loc"]:
        raise Refused(400, "MALFORMED_BODY", "the body is not a JSON object")
    raise InvalidRequest(_path(model, problem["loc"]), said_of(problem))


def _path(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """As far as it is of our own words: behind them come a client's, and pydantic's."""
    return ".".join(str(part) for part in takewhile(lambda part: _is_ours(model, part), loc))


def _is_ours(model: type[BaseModel], part: int | str) -> bool:
    digits = str(part)
    return part in _names(model) or (digits.isdecimal() and len(digits) <= MAX_DIGITS)


@lru_cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    schema = model.model_json_schema()
    parts = (schema, *schema.get("$defs", {}).values())
    return frozenset(name for part in parts for name in part.get("properties", ()))
