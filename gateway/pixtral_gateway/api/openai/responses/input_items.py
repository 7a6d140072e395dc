"""Input items of a response as turns of a conversation."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pixtral_core.errors import InvalidRequest
from pixtral_gateway.api.openai.request_schema import ROLES
from pixtral_gateway.checks.conversation import ImageSource, Role, ToolCall, Turn
from pixtral_gateway.checks.tools import check_call
from pixtral_gateway.checks.validation import check_parts

_TEXTS = ("input_text", "output_text", "text")
_TURN = re.compile(r"messages\[(\d+)\](.*)")
_CALL = re.compile(r"\.tool_calls\[(\d+)\](.*)")
_NAMES = {".id": ".call_id", ".tool_call_id": ".call_id", ".tool_calls": ""}


@dataclass(slots=True)
class _OpenTurn:
    """A turn that may still gain from the next item. `path` is its first item's."""

    role: Role
    path: str
    parts: list[str | ImageSource] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    call_paths: list[str] = field(default_factory=list)
    call_id: str = ""


class InputItems:
    """The turns that a response's instructions and input make.

    An assistant's text and the calls that follow it are one turn. Images in the results of calls
    come in a user's turn after those results, as no template has a place for them in a result.
    Raises InvalidRequest, with paths of the input.
    """

    def __init__(
        self, instructions: str | None, given: str | Sequence[Any], *, context_length: int
    ) -> None:
        self._turns: list[_OpenTurn] = []
        self._results: list[ImageSource] = []
        if instructions:
            self._turns.append(_OpenTurn(Role.SYSTEM, "instructions", [instructions]))
        if isinstance(given, str):
            self._turns.append(_OpenTurn(Role.USER, "input", [given]))
            return
        check_parts([_length(item) for item in given], context_length)
        for i, item in enumerate(given):
            self._add(item, f"input.{i}")
        self._show_results()

    @property
    def turns(self) -> tuple[Turn, ...]:
        return tuple(
            Turn(turn.role, tuple(turn.parts), tuple(turn.calls), turn.call_id)
            for turn in self._turns
        )

    def name_of(self, field: str) -> str:
        """The path in the input of what the gateway calls a field of its messages."""
        if field == "messages":
            return "input"
        found = _TURN.fullmatch(field)
        if found is None or int(found[1]) >= len(self._turns):
            return field
        turn, path = self._turns[int(found[1])], found[2]
        call = _CALL.fullmatch(path)
        if call is not None:
            return turn.call_paths[int(call[1])] + _NAMES.get(call[2], call[2])
        of = turn.call_paths[0] if path == ".tool_calls" and turn.call_paths else turn.path
        return of + _NAMES.get(path, path)

    def _add(self, item: Any, path: str) -> None:
        if not isinstance(item, dict):
            raise InvalidRequest(path, "must be an object with a type or a role")
        match item.get("type"):
            case "message" | None:
                self._message(item, path)
            case "function_call":
                self._call(item, path)
            case "function_call_output":
                self._result(item, path)
            case "reasoning":
                # What the model thought is for no later turn of Mistral's templates.
                pass
            case "item_reference":
                raise InvalidRequest(
                    f"{path}.type",
                    "this gateway keeps no items: send each item itself",
                    "UNSUPPORTED_PARAMETER",
                )
            case _:
                raise InvalidRequest(
                    f"{path}.type",
                    "must be message, function_call, function_call_output or reasoning",
                    "UNSUPPORTED_PARAMETER",
                )

    def _message(self, item: dict[str, Any], path: str) -> None:
        name = item.get("role")
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None or role is Role.TOOL:
            raise InvalidRequest(f"{path}.role", "must be user, assistant, system or developer")
        parts = _parts(item.get("content"), f"{path}.content", role)
        if role is Role.ASSISTANT:
            if not parts:
                # An answer that stopped before its first word says nothing.
                return
            self._show_results()
            if self._is_of_calls_alone():
                self._turns[-1].parts.extend(parts)
                return
        elif role is Role.USER:
            parts = [*self._taken_results(), *(parts or [""])]
        else:
            self._show_results()
        self._turns.append(_OpenTurn(role, path, parts))

    def _call(self, item: dict[str, Any], path: str) -> None:
        call_id, name = item.get("call_id"), item.get("name")
        arguments = item.get("arguments")
        for value, field_ in ((call_id, "call_id"), (name, "name"), (arguments, "arguments")):
            if not isinstance(value, str):
                raise InvalidRequest(f"{path}.{field_}", "must be a text")
        call = ToolCall(str(call_id), str(name), str(arguments))
        try:
            check_call(call, path)
        except InvalidRequest as error:
            field_, description = error.violations[0]
            raise InvalidRequest(field_.replace(".id", ".call_id"), description) from None
        self._show_results()
        if not self._turns or self._turns[-1].role is not Role.ASSISTANT:
            self._turns.append(_OpenTurn(Role.ASSISTANT, path))
        self._turns[-1].calls.append(call)
        self._turns[-1].call_paths.append(path)

    def _result(self, item: dict[str, Any], path: str) -> None:
        call_id = item.get("call_id")
        if not isinstance(call_id, str):
            raise InvalidRequest(f"{path}.call_id", "must be a text")
        parts = _parts(item.get("output"), f"{path}.output", Role.TOOL)
        texts: list[str | ImageSource] = [part for part in parts if isinstance(part, str)]
        self._results += [part for part in parts if isinstance(part, ImageSource)]
        self._turns.append(_OpenTurn(Role.TOOL, path, texts, call_id=call_id))

    def _is_of_calls_alone(self) -> bool:
        if not self._turns:
            return False
        last = self._turns[-1]
        return last.role is Role.ASSISTANT and bool(last.calls) and not last.parts

    def _taken_results(self) -> list[ImageSource]:
        results, self._results = self._results, []
        return results

    def _show_results(self) -> None:
        if self._results:
            path = self._results[0].path
            self._turns.append(_OpenTurn(Role.USER, path, [*self._taken_results()]))


def _length(item: Any) -> int:
    content = item.get("content") or item.get("output") if isinstance(item, dict) else None
    return len(content) if isinstance(content, list) else 1


def _parts(content: Any, path: str, role: Role) -> list[str | ImageSource]:
    """Without empty texts, which no template has anything for."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content] if content else []
    if not isinstance(content, list):
        raise InvalidRequest(path, "must be text or a list of parts")
    found = (_part(part, f"{path}.{i}", role) for i, part in enumerate(content))
    return [part for part in found if part != ""]


def _part(part: Any, path: str, role: Role) -> str | ImageSource:
    match part:
        case {"type": str(kind), "text": str(text)} if kind in _TEXTS:
            return text
        case {"type": "refusal", "refusal": str(text)}:
            return text
        case {"type": "input_image", "image_url": str(url)}:
            if role not in (Role.USER, Role.TOOL):
                raise InvalidRequest(
                    path, "only user messages and results of calls may hold images"
                )
            return ImageSource(f"{path}.image_url", url=url)
        case {"type": "input_image"}:
            raise InvalidRequest(
                f"{path}.image_url", "is needed: this gateway keeps no files to name by file_id"
            )
        case {"type": str(kind)} if kind in _TEXTS:
            raise InvalidRequest(f"{path}.text", "must be a text")
        case {"type": str()}:
            raise InvalidRequest(
                f"{path}.type",
                "must be input_text, input_image or output_text",
                "UNSUPPORTED_PARAMETER",
            )
        case _:
            raise InvalidRequest(path, "must be an object with a type")
