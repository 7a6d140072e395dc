"""Writes in plain words the problem that pydantic reports about a field of a body."""

from pydantic_core import ErrorDetails

from pixtral_gateway.api.openai.json_kinds import kind_of

# The first part of pydantic's name for a problem, and what the field must be.
_KINDS = {
    "bool": "true or false",
    "dict": "an object",
    "float": "a number",
    "int": "an integer",
    "list": "a list",
    "model": "an object",
    "string": "a text",
}
# Values of the right kind that are still wrong, such as 1.5 for an integer.
_WRONG_VALUES = frozenset({"bool_parsing", "float_parsing", "int_from_float", "int_parsing"})


def said_of(problem: ErrorDetails) -> str:
    """The message never repeats the value. The bounds and choices in it come from the field's own
    type."""
    kind, context = problem["type"], problem.get("ctx", {})
    match kind:
        case "missing":
            return "is needed"
        case "literal_error":
            return f"must be {context['expected']}"
        case "greater_than_equal":
            return f"must be {context['ge']} or more"
        case "less_than_equal":
            return f"must be {context['le']} or less"
        case "value_error":
            return str(context["error"])
    expected = _KINDS.get(kind.partition("_")[0])
    if expected is None:
        return problem["msg"][:1].lower() + problem["msg"][1:]
    if kind in _WRONG_VALUES and not isinstance(problem["input"], str):
        return f"must be {expected}"
    return f"must be {expected}, not {kind_of(problem['input'])}"
