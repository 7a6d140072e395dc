"""Reads the body of an HTTP request, within bounds of size, and parses it."""

import asyncio
from functools import lru_cache
from itertools import takewhile
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from pixtral_core import limits
from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.concurrency.rate import Rates
from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.errors import InvalidRequest
from pixtral_core.server.channel import MAX_MESSAGE_BYTES
from pixtral_core.server.reception import LARGE_BYTES, Pace, Receiving, when_behind
from pixtral_gateway.api.http.body_problem import said_of
from pixtral_gateway.api.http.middleware import ClientGone
from pixtral_gateway.api.openai.errors import Refused
from pixtral_gateway.images.image_reader import OFFLOAD_BYTES

# As large as a gRPC message may be.
MAX_BODY_BYTES = MAX_MESSAGE_BYTES
# The large bodies of one party are received at this rate after the first, and parsed at this rate,
# because parsing blocks all threads.
LARGE_BYTES_A_SECOND = 64 << 20
_PIECE_BYTES = 1 << 20
# The digits of an index, or of a token's id.
MAX_DIGITS = 10

M = TypeVar("M", bound=BaseModel)


class Bodies:
    """Reads bodies, as many at once as fit into `room`.

    Only requests that read and parse a body need a permit here.
    """

    def __init__(self, room: SharedLimit) -> None:
        self._room = room
        # Parsing blocks all threads, and each body takes memory while it is parsed.
        self._parsing = asyncio.Lock()
        self._receipts = Rates(LARGE_BYTES_A_SECOND, MAX_BODY_BYTES)
        self._parses = Rates(LARGE_BYTES_A_SECOND, 0)

    async def read(
        self, request: Request, model: type[M], deadline: Deadline, party: str, counter: Receiving
    ) -> M:
        """The body as a `model`. `party` takes the room for it, and `counter` counts it meanwhile.

        Raises Refused, Overloaded, and InvalidRequest with a field.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # A browser also sends such a body to another site only after it has asked that site.
            raise Refused(
                415, "UNSUPPORTED_MEDIA_TYPE", "the content type must be application/json"
            )
        told = request.headers.get("content-length", "")
        if told.isascii() and told.isdigit() and int(told[:20]) > MAX_BODY_BYTES:
            raise _too_large()
        body = bytearray()
        counter.receiving += 1
        try:
            await self._receive(request, body, deadline, party)
            if len(body) > LARGE_BYTES:
                parses = self._parses.of(party)
                wait = parses.wait()
                parses.spend(len(body))
                await asyncio.sleep(wait)
            if len(body) > OFFLOAD_BYTES:
                async with self._parsing:
                    return await asyncio.to_thread(_parse, model, body)
            return _parse(model, body)
        finally:
            counter.receiving -= 1
            self._room.give_back(party, len(body))

    async def _receive(
        self, request: Request, body: bytearray, deadline: Deadline, party: str
    ) -> None:
        pace = Pace()
        try:
            async with asyncio.timeout(deadline.remaining()), asyncio.timeout(None) as pace_ends:
                pace_ends.reschedule(when_behind(pace))
                async for chunk in request.stream():
                    if len(body) + len(chunk) > MAX_BODY_BYTES:
                        raise _too_large()
                    self._room.take(party, len(chunk))
                    body += chunk
                    if len(body) > LARGE_BYTES:
                        receipts = self._receipts.of(party)
                        receipts.spend(len(chunk))
                        await asyncio.sleep(receipts.wait())
                    pace.receive(len(chunk))
                    pace_ends.reschedule(when_behind(pace))
        except ClientDisconnect:
            raise ClientGone from None
        except TimeoutError:
            raise Refused(
                408, "REQUEST_TIMEOUT", "the body arrives too slowly or not at all"
            ) from None


def _too_large() -> Refused:
    return Refused(413, "BODY_TOO_LARGE", f"the body is larger than {MAX_BODY_BYTES} bytes")


def _parse(model: type[M], body: bytearray) -> M:
    for limit, exceeds in (
        (limits.BODY_ESCAPES, _count(body, b"\\", 0, len(body)) > limits.BODY_ESCAPES.most),
        (limits.BODY_VALUES, _has_more_values(body, limits.BODY_VALUES.most)),
    ):
        if exceeds:
            raise Refused(413, "BODY_TOO_LARGE", f"a request must have {limit}")
    try:
        return model.model_validate_json(body)
    except ValidationError as failure:
        problem = failure.errors(include_url=False)[0]
    if problem["type"] == "json_invalid":
        raise Refused(400, "MALFORMED_JSON", "the body is not valid JSON")
    if not problem["loc"]:
        raise Refused(400, "MALFORMED_BODY", "the body is not a JSON object")
    raise InvalidRequest(_path(model, problem["loc"]), said_of(problem))


def _has_more_values(body: bytearray, most: int) -> bool:
    """Whether JSON has more than this many values. A bracket inside a string does not count."""
    if _commas_and_brackets(body, 0, len(body)) <= most:
        return False
    # Rare, and in Python: other requests run in between, and `most` and the escapes bound its time.
    values, strings, at = 0, 0, 0
    while (quote := body.find(b'"', at)) >= 0:
        values += _commas_and_brackets(body, at, quote)
        strings += 1
        # Each is a value, or the name of one.
        if max(values, strings // 2) > most:
            return True
        at = _end_of_string(body, quote + 1)
    return values + _commas_and_brackets(body, at, len(body)) > most


def _commas_and_brackets(body: bytearray, start: int, end: int) -> int:
    return sum(_count(body, each, start, end) for each in (b",", b"{", b"["))


def _count(body: bytearray, byte: bytes, start: int, end: int) -> int:
    # Between two pieces, other threads may go on.
    pieces = ((at, min(at + _PIECE_BYTES, end)) for at in range(start, end, _PIECE_BYTES))
    return sum(body.count(byte, *piece) for piece in pieces)


def _end_of_string(body: bytearray, start: int) -> int:
    at = start
    while (quote := body.find(b'"', at)) >= 0:
        slashes = quote
        while slashes > start and body[slashes - 1] == ord("\\"):
            slashes -= 1
        at = quote + 1
        if (quote - slashes) % 2 == 0:
            return at
    return len(body)


def _path(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """The leading part of the path, which consists of our own field names. The rest may echo the
    client's input, or name pydantic's types."""
    return ".".join(str(part) for part in takewhile(lambda part: _is_ours(model, part), loc))


def _is_ours(model: type[BaseModel], part: int | str) -> bool:
    digits = str(part)
    return part in _names(model) or (digits.isdecimal() and len(digits) <= MAX_DIGITS)


@lru_cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    schema = model.model_json_schema()
    parts = (schema, *schema.get("$defs", {}).values())
    return frozenset(name for part in parts for name in part.get("properties", ()))
