"""Answers as values of a type: `response_model`, by pydantic, which is imported when it is used."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

from pixtral_client.results import Completion

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ParsedCompletion(Completion, Generic[T]):
    """A completion whose text was read as the `response_model`: `parsed`, of the first choice."""

    parsed: T = field(kw_only=True)


class AnswerNotParsed(ValueError):
    """The text of an answer is not a value of the `response_model`; `completion` is the answer.

    An answer that ends for its length (`completion.finish_reason`) needs a larger `max_tokens`.
    Else a check of the model refuses it that its JSON schema does not express.
    """

    def __init__(self, completion: Completion, wrong: str) -> None:
        super().__init__(wrong)
        self.completion = completion


class ResponseModel(Generic[T]):
    """The type of the answers: a pydantic model, or any other type that pydantic reads.

    Raises ImportError where pydantic is not installed.
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
        """Raises AnswerNotParsed."""
        if completion.finish_reason == "length":
            count = completion.usage.completion_tokens
            raise AnswerNotParsed(
                completion, f"the answer is cut after {count} tokens: give a larger max_tokens"
            )
        try:
            parsed = self._adapter.validate_json(completion.text)
        except self._invalid as error:
            raise AnswerNotParsed(completion, str(error)) from error
        values = {each.name: getattr(completion, each.name) for each in fields(Completion)}
        return ParsedCompletion(**values, parsed=parsed)
