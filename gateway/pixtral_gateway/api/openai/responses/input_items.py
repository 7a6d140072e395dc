"""Input items of a response as turns of a conversation."""

from collections.abc import Sequence
from typing import Any

from pixtral_core.errors import InvalidRequest
from pixtral_gateway.api.openai.messages import is_low_detail
from pixtral_gateway.api.openai.request_schema import ROLES
from pixtral_gateway.api.turns import Turns
from pixtral_gateway.checks.conversation import ImageSource, Part, Role, Thinking, ToolCall
from pixtral_gateway.checks.tools import check_call
from pixtral_gateway.checks.validation import check_parts

_TEXTS = ("input_text", "output_text", "text")


class InputItems(Turns):
    """The instructions and the input of a response, as turns.

    `goes_on` is true if the last turn is the beginning of the answer. Raises InvalidRequest, whose
    path names the field of the input.
    """

    def __init__(
        self, instructions: str | None, given: str | Sequence[Any], *, context_length: int
    ) -> None:
        super().__init__("input", {".id": ".call_id", ".tool_call_id": ".call_id"})
        if instructions:
            self.system("instructions", [instructions])
        self.goes_on = False
        if isinstance(given, str):
            self.user("input", [given])
            return
        check_parts([_length(item) for item in given], context_length)
        for i, item in enumerate(given):
            self._add(item, f"input.{i}")
        # An incomplete last message of the assistant is the beginning of the answer, as in vLLM.
        if given and self.ends_with_text:
            last: Any = given[-1]
            self.goes_on = last.get("status") in ("in_progress", "incomplete")

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
                self._reasoning(item, path)
            case "item_reference":
                raise InvalidRequest(
                    f"{path}.type",
                    "this gateway stores no items: send each item itself",
                    "UNSUPPORTED_PARAMETER",
                )
            case _:
                raise InvalidRequest(
                    f"{path}.type",
                    "must be message, function_call, function_call_output or reasoning",
                    "UNSUPPORTED_PARAMETER",
                )

    def _reasoning(self, item: dict[str, Any], path: str) -> None:
        """Adds the model's thought. Ignores an item that has only a summary, because another
        service made it."""
        content = item.get("content")
        texts = [
            each["text"]
            for each in (content if isinstance(content, list) else ())
            if isinstance(each, dict) and isinstance(each.get("text"), str)
        ]
        if text := "".join(texts):
            self.assistant(path, [Thinking(text)])

    def _message(self, item: dict[str, Any], path: str) -> None:
        name = item.get("role")
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None or role is Role.TOOL:
            raise InvalidRequest(f"{path}.role", "must be user, assistant, system or developer")
        parts = _parts(item.get("content"), f"{path}.content", role)
        match role:
            case Role.ASSISTANT:
                self.assistant(path, parts)
            case Role.USER:
                self.user(path, parts)
            case _:
                self.system(path, parts)

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
        self.call(path, call)

    def _result(self, item: dict[str, Any], path: str) -> None:
        call_id = item.get("call_id")
        if not isinstance(call_id, str):
            raise InvalidRequest(f"{path}.call_id", "must be a text")
        parts = _parts(item.get("output"), f"{path}.output", Role.TOOL)
        self.result(path, call_id, parts)


def _length(item: Any) -> int:
    content = item.get("content") or item.get("output") if isinstance(item, dict) else None
    return len(content) if isinstance(content, list) else 1


def _parts(content: Any, path: str, role: Role) -> list[Part]:
    """The parts of a content. An empty text becomes no part: mistral_common would count it as
    one."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content] if content else []
    if not isinstance(content, list):
        raise InvalidRequest(path, "must be text or a list of parts")
    return [_part(part, f"{path}.{i}", role) for i, part in enumerate(content)]


def _part(part: Any, path: str, role: Role) -> str | ImageSource:
    match part:
        case {"type": str(kind), "text": str(text)} if kind in _TEXTS:
            return text
        case {"type": "refusal", "refusal": str(text)}:
            return text
        case {"type": "input_image", "image_url": str(url)}:
            if role not in (Role.USER, Role.TOOL):
                raise InvalidRequest(
                    path, "only user messages and results of tool calls may have images"
                )
            low = is_low_detail(part, path)
            return ImageSource(f"{path}.image_url", url=url, low_detail=low)
        case {"type": "input_image"}:
            raise InvalidRequest(
                f"{path}.image_url",
                "is needed: this gateway stores no files that file_id could name",
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
