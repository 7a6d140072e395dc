"""Names a field in an error as the client's own API does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pixtral_core.errors import InvalidRequest


@contextmanager
def renamed(name_of: Callable[[str], str]) -> Iterator[None]:
    """An InvalidRequest of the block names what `name_of` makes of its field."""
    try:
        yield
    except InvalidRequest as error:
        field, description = error.violations[0]
        name = name_of(field)
        if name == field:
            raise
        raise InvalidRequest(name, description, error.reason) from None
