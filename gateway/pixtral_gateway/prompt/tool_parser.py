"""Parses tool calls in generated text, piece by piece.

Mistral's models have two forms for tool calls, each after the control token [TOOL_CALLS]:

    [TOOL_CALLS][{"name": "look", "arguments": {"at": "cat"}}, ...]     tokenizers before version 11
    [TOOL_CALLS]look[ARGS]{"at": "cat"}[TOOL_CALLS]...                  tokenizers since version 11

Anything in neither form is text, and the client receives it as text.
"""

import json
import re
import secrets
import string
from collections.abc import Callable, Generator
from enum import Enum
from typing import TypeAlias

from pixtral_gateway.checks.tools import NAME
from pixtral_gateway.request import ToolCallDelta

# After this many characters, the parser stops waiting for the end of a name, a key or white space.
MAX_WAIT = 256

_SPACE = " \t\r\n"
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_LITERAL = re.compile(r"[^,\]}\s]+")
_ID_LETTERS = string.ascii_letters + string.digits


class Marker(Enum):
    """A control token, at its position in the answer's text."""

    CALLS = "[TOOL_CALLS]"
    ARGS = "[ARGS]"
    CALL_ID = "[CALL_ID]"
    THINK = "[THINK]"
    END_THINK = "[/THINK]"


class Malformed(Exception):
    """The text is not a tool call, though it began like one."""


# A generator that reads a form as its text arrives, and yields when it needs more text.
Reading: TypeAlias = Generator[None, None, None]


class CallReader:
    """Reads the tool calls in one answer.

    Each form is a method of this class that reads the text after [TOOL_CALLS]. Two texts are not
    sent yet: `_held` has been read, and `_rest` has not. If they turn out not to be a tool call,
    both are sent as text.
    """

    def __init__(self, form: Callable[["CallReader"], Reading], *, has_begun: bool = False) -> None:
        """With `has_begun`, the prompt ends with [TOOL_CALLS], and the parser does not wait for
        it."""
        self._form = form
        self._told: list[str | ToolCallDelta] = []
        self._held = ""
        self._rest = ""
        self._marker: Marker | None = None
        self._calls = 0
        self._reading: Reading | None = None
        if has_begun:
            self._begin_reading()

    def add(self, said: str | Marker) -> list[str | ToolCallDelta]:
        """The text and the parts of tool calls that are certain now."""
        if said is Marker.CALLS:
            self._give_up()
            self._begin_reading()
        elif self._reading is None:
            if isinstance(said, str):
                self._told.append(said)
        else:
            if isinstance(said, Marker):
                self._marker = said
            else:
                self._rest += said
            self._read_on(self._reading)
            self._marker = None
        return self._take_told()

    def end(self, *, is_cut: bool = False) -> list[str | ToolCallDelta]:
        """The rest of the text, when the answer has ended.

        When a limit has cut the answer (`is_cut`), the beginning of a tool call is dropped.
        """
        if is_cut and self._reading is not None:
            self._held = self._rest = ""
        self._give_up()
        return self._take_told()

    def listed(self) -> Reading:
        """The form of version 3: a JSON list of all calls."""
        yield from self._one_of("[")
        while True:
            yield from self._one_of("{")
            yield from self._listed_call()
            if (yield from self._one_of(",]")) == "]":
                break
        yield from self._nothing()

    def named(self) -> Reading:
        """The form of version 11: a name, and a JSON object."""
        name = yield from self._name()
        yield from self._call(name)
        yield from self._nothing()

    def spelled(self) -> Reading:
        """Like `named`, for a grammar that makes the answer spell the control tokens in its
        text."""
        while True:
            name = yield from self._name()
            yield from self._call(name.removesuffix(Marker.ARGS.value))
            for letter in Marker.CALLS.value:
                yield from self._one_of(letter)

    def called(self, name: str) -> Reading:
        """The arguments of a tool call whose name the prompt ends with."""
        yield from self._call(name)
        yield from self._nothing()

    def _listed_call(self) -> Reading:
        name, arguments, has_begun = "", "{}", False
        while True:
            key = yield from self._string()
            yield from self._one_of(":")
            first = yield from self._first()
            if has_begun and key in ("name", "arguments"):
                raise Malformed
            if key == "name":
                name = yield from self._string()
            elif key == "arguments" and first == "{" and name:
                yield from self._call(name)
                has_begun = True
            elif key == "arguments" and first == "{":
                arguments = yield from self._value()
            elif key == "arguments" and first == '"':
                arguments = _unquoted((yield from self._value()))
            elif key == "arguments":
                raise Malformed
            else:
                yield from self._value()
            if (yield from self._one_of(",}")) == "}":
                break
        if not has_begun:
            self._tell(name, arguments)

    def _call(self, name: str) -> Reading:
        """A JSON object, as the arguments of a new tool call."""
        if (yield from self._first()) != "{":
            raise Malformed
        self._tell(name, "")
        extent = _Extent()
        while True:
            end = extent.end_in(self._rest)
            if more := self._read(len(self._rest) if end is None else end):
                self._told.append(ToolCallDelta(self._calls - 1, more))
            self._held = ""
            if end is not None:
                return
            yield

    def _name(self) -> Generator[None, None, str]:
        while self._marker is None and "{" not in self._rest:
            yield from self._more()
        # If the model left out [ARGS], the arguments end the name.
        name = self._read(len(self._rest.partition("{")[0])).strip(_SPACE)
        if self._marker is Marker.CALL_ID:
            yield from self._until(Marker.ARGS)
            # This skips the model's own id, which the newest form does not have.
            self._read(len(self._rest))
        return name

    def _value(self) -> Generator[None, None, str]:
        """Any whole JSON value."""
        if (yield from self._first()) in '{["':
            begun, extent = len(self._held), _Extent()
            while (end := extent.end_in(self._rest)) is None:
                self._read(len(self._rest))
                yield
            self._read(end)
            return self._held[begun:]
        while match := _LITERAL.match(self._rest):
            if match.end() < len(self._rest):
                return self._read(match.end())
            yield from self._more()
        raise Malformed

    def _string(self) -> Generator[None, None, str]:
        """A short JSON string."""
        if (yield from self._first()) != '"':
            raise Malformed
        while (match := _STRING.match(self._rest)) is None:
            yield from self._more()
        if match.end() > MAX_WAIT:
            raise Malformed
        return _unquoted(self._read(match.end()))

    def _one_of(self, letters: str) -> Generator[None, None, str]:
        if (yield from self._first()) not in letters:
            raise Malformed
        return self._read(1)

    def _nothing(self) -> Reading:
        self._held = ""
        while not (rest := self._rest.lstrip(_SPACE)):
            self._rest = ""
            yield
        self._rest = rest
        raise Malformed

    def _first(self) -> Generator[None, None, str]:
        """The next character that is not white space; it stays unread."""
        while not (rest := self._rest.lstrip(_SPACE)):
            yield from self._more()
        if len(self._read(len(self._rest) - len(rest))) > MAX_WAIT:
            raise Malformed
        return rest[0]

    def _until(self, marker: Marker) -> Reading:
        while self._marker is not marker:
            yield from self._more()

    def _more(self) -> Reading:
        if len(self._rest) > MAX_WAIT:
            raise Malformed
        yield

    def _read(self, count: int) -> str:
        read, self._rest = self._rest[:count], self._rest[count:]
        self._held += read
        return read

    def _tell(self, name: str, arguments: str) -> None:
        if not NAME.fullmatch(name):
            raise Malformed
        call_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(9))
        self._told.append(ToolCallDelta(self._calls, arguments, call_id, name))
        self._calls += 1
        self._held = ""

    def _begin_reading(self) -> None:
        self._reading = self._form(self)
        self._read_on(self._reading)

    def _read_on(self, reading: Reading) -> None:
        try:
            next(reading)
        except Malformed:
            self._give_up()

    def _give_up(self) -> None:
        self._reading = None
        if text := self._held + self._rest:
            self._told.append(text)
        self._held = self._rest = ""

    def _take_told(self) -> list[str | ToolCallDelta]:
        told, self._told = self._told, []
        return told


class _Extent:
    """Finds the end of a JSON object, list or string that arrives in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def end_in(self, text: str) -> int | None:
        """The number of characters of the text up to the value's end; None if the end is not in
        it."""
        for at, letter in enumerate(text, start=1):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped = letter == "\\"
                self._in_string = letter != '"'
                if not self._in_string and not self._depth:
                    return at
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if not self._depth:
                    return at
        return None


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        raise Malformed from None
