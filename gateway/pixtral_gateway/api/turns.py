"""Builds turns of a conversation from items that are not messages of OpenAI's chat."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pixtral_gateway.checks.conversation import (
    ImageSource,
    Part,
    Role,
    Thinking,
    ToolCall,
    Turn,
)

_TURN = re.compile(r"messages\[(\d+)\](.*)")
_CALL = re.compile(r"\.tool_calls\[(\d+)\](.*)")


@dataclass(slots=True)
class _OpenTurn:
    """A turn that the next item may extend. `path` is the path of its first item."""

    role: Role
    path: str
    parts: list[Part] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    call_paths: list[str] = field(default_factory=list)
    call_id: str = ""


class Turns:
    """The turns of a conversation, and the path of each in the client's request.

    An assistant's thoughts, its text and its tool calls are one turn. Images in the results of tool
    calls come in a user's turn after those results, as in vLLM, because most templates have no
    place for images in a result.
    """

    def __init__(self, field: str, names: Mapping[str, str]) -> None:
        """`field` is the field with the items. `names` translates the gateway's names
        `.tool_call_id`, and `.id` of a tool call, into the client's.
        """
        self._field = field
        self._names = names
        self._turns: list[_OpenTurn] = []
        self._shown: list[ImageSource] = []

    def system(self, path: str, parts: Sequence[Part]) -> None:
        self._show()
        self._turns.append(_OpenTurn(Role.SYSTEM, path, [*parts]))

    def user(self, path: str, parts: Sequence[Part]) -> None:
        shown, self._shown = self._shown, []
        self._turns.append(_OpenTurn(Role.USER, path, [*shown, *parts]))

    def assistant(self, path: str, parts: Sequence[Part]) -> None:
        self._show()
        last = self._last_assistant()
        # Thoughts and tool calls before this text belong to the same turn.
        has_said = last is not None and not all(isinstance(p, Thinking) for p in last.parts)
        if last is not None and not has_said and (last.calls or last.parts):
            last.parts.extend(parts)
        else:
            self._turns.append(_OpenTurn(Role.ASSISTANT, path, [*parts]))

    def call(self, path: str, call: ToolCall) -> None:
        self._show()
        last = self._last_assistant()
        if last is None:
            last = _OpenTurn(Role.ASSISTANT, path)
            self._turns.append(last)
        last.calls.append(call)
        last.call_paths.append(path)

    def result(self, path: str, call_id: str, parts: Sequence[Part]) -> None:
        texts: list[Part] = [part for part in parts if isinstance(part, str)]
        self._shown += [part for part in parts if isinstance(part, ImageSource)]
        self._turns.append(_OpenTurn(Role.TOOL, path, texts, call_id=call_id))

    def done(self) -> tuple[Turn, ...]:
        self._show()
        return tuple(
            Turn(turn.role, tuple(turn.parts), tuple(turn.calls), turn.call_id)
            for turn in self._turns
        )

    @property
    def ends_with_text(self) -> bool:
        """Whether the last turn is an assistant's without tool calls."""
        last = self._last_assistant()
        return last is not None and not last.calls

    def name_of(self, field: str) -> str:
        """The client's path for a field of the gateway's messages."""
        if field == "messages":
            return self._field
        found = _TURN.fullmatch(field)
        if found is None or int(found[1]) >= len(self._turns):
            return field
        turn, path = self._turns[int(found[1])], found[2]
        call = _CALL.fullmatch(path)
        if call is not None:
            return turn.call_paths[int(call[1])] + self._names.get(call[2], call[2])
        if path == ".tool_calls" and turn.call_paths:
            return turn.call_paths[0]
        return turn.path + self._names.get(path, path)

    def _last_assistant(self) -> _OpenTurn | None:
        if self._turns and self._turns[-1].role is Role.ASSISTANT:
            return self._turns[-1]
        return None

    def _show(self) -> None:
        if self._shown:
            self.user(self._shown[0].path, [])
