"""Translates the names of fields in errors into those of the client's API."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pixtral_core.errors import InvalidRequest


@contextmanager
def renamed(name_of: Callable[[str], str]) -> Iterator[None]:
    """An InvalidRequest of the block gets the field's name that `name_of` returns."""
    try:
        yield
    except InvalidRequest as error:
        field, description = error.violations[0]
        name = name_of(field)
        if name == field:
            raise
        raise InvalidRequest(name, description, error.reason) from None
