"""Reads answers as values of a type, the `response_model`, with pydantic, imported on use."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

from pixtral_client.results import Completion

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ParsedCompletion(Completion, Generic[T]):
    """A completion with `parsed`: the first choice's text as a value of the `response_model`."""

    parsed: T = field(kw_only=True)


class AnswerNotParsed(ValueError):
    """The text of an answer is not a value of the `response_model`; `completion` is the answer.

    If the answer ended because of its length (`completion.finish_reason`), raise `max_tokens`. In
    other cases the model has a check that its JSON schema does not express.
    """

    def __init__(self, completion: Completion, wrong: str) -> None:
        super().__init__(wrong)
        self.completion = completion


class ResponseModel(Generic[T]):
    """The type of the answers: a pydantic model, or any other type that pydantic reads.

    Raises ImportError if pydantic is not installed.
    """

    def __init__(self, wanted: type[T]) -> None:
        try:
            from pydantic import TypeAdapter, ValidationError
        except ImportError:
            raise ImportError("response_model needs pydantic: pip install pydantic") from None
        self._adapter = TypeAdapter(wanted)
        self._invalid = ValidationError

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a request, with the form of its answer."""
        if given.get("structured_output") is not None:
            raise TypeError(
                "response_model and structured_output exclude each other: give one of them"
            )
        schema = self._adapter.json_schema()
        return {**given, "structured_output": {"json_schema": schema}}

    def read(self, completion: Completion) -> ParsedCompletion[T]:
        """The completion with its parsed text. Raises AnswerNotParsed."""
        if completion.finish_reason == "length":
            count = completion.usage.completion_tokens
            raise AnswerNotParsed(
                completion, f"the answer ends after {count} tokens: give a larger max_tokens"
            )
        try:
            parsed = self._adapter.validate_json(completion.text)
        except self._invalid as error:
            raise AnswerNotParsed(completion, str(error)) from error
        values = {each.name: getattr(completion, each.name) for each in fields(Completion)}
        return ParsedCompletion(**values, parsed=parsed)
