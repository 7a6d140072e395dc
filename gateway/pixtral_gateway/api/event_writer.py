"""Writes an answer as a whole or as a stream, for APIs whose streams name their events."""

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from pixtral_gateway.api.field_names import renamed
from pixtral_gateway.api.openai.chat_response import Events
from pixtral_gateway.request import Delta, Event, Finished

E = TypeVar("E")


class EventWriter(ABC, Generic[E]):
    """Builds one answer. Each step returns events for a stream; a whole answer drops them."""

    async def gathered(self, events: Events) -> Finished:
        """Adds all deltas. Returns the last event of the pipeline, once the last token has come."""
        async with aclosing(events):
            async for event in events:
                match event:
                    case Delta():
                        _exhaust(self._add(event))
                    case Finished():
                        finished = event
        _exhaust(self._end())
        return finished

    async def events(self, events: Events, name_of: Callable[[str], str]) -> AsyncGenerator[bytes]:
        """Server-sent events; the first events come with the first token. `name_of` translates a
        field's path in errors.
        """
        with renamed(name_of):
            async with aclosing(events):
                async for event in events:
                    if made := [*self._events_of(event)]:
                        yield sent(made)

    @abstractmethod
    def _events_of(self, event: Event) -> Iterable[E]:
        """The events for one event of the pipeline."""

    @abstractmethod
    def _add(self, delta: Delta) -> Iterable[E]:
        """The events for a delta, without those that begin the answer."""

    @abstractmethod
    def _end(self) -> Iterable[E]:
        """The events that close every open item."""


def sent(events: Iterable[Any]) -> bytes:
    """Events in the wire format, each with its `type` as its name."""
    # The JSON is ASCII, because some clients take U+2028 and similar characters for the end of a
    # line.
    return b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n".encode()
        for event in events
    )


def _exhaust(step: Iterable[Any]) -> None:
    for _ in step:
        pass
