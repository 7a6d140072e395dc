"""Hooks into other libraries: the names that each one touches, and a check that they still exist.

A hook is a module that uses a part of a library that the library does not promise to keep. Its
docstring has the fields in FIELDS, from which `tools/hooks_page.py` makes docs/hooks.md. The module
lists the names that it touches, and its `check_upstream` runs at the start of the process. If the
library has changed, the process logs a sentence and ends. Without the check, the first request
would fail with an AttributeError.
"""

import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any

from pixtral_core.errors import StartupError

FIELDS = ("Library", "Changes", "Why", "Upstream", "Versions")
"""The fields of a hook's docstring, each at the beginning of a line as `Field: text`.

`Library` names the distribution, `Upstream` is a link or "none known", and `Versions` are those
with which the hook was tried.
"""


class HookBroken(StartupError):
    """A library lacks a name that a hook touches; the message says which name, and what to do."""


@dataclass(frozen=True, slots=True)
class Touch:
    """A name in a library that a hook reads, calls or replaces.

    Attributes:
        module: the module that contains it.
        path: the attributes from the module to it, joined by dots.
        parameters: names of parameters that the callable must have.
        mentions: names that the function's code must use. For an attribute that only instances
            have, `path` names the function that sets it.
    """

    module: str
    path: str
    parameters: tuple[str, ...] = ()
    mentions: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.module}.{self.path}"

    def missing(self) -> str | None:
        """The parts that the library lacks, as the end of a sentence; None if it has all."""
        try:
            found: Any = importlib.import_module(self.module)
        except ImportError:
            return f"has no module {self.module}"
        for name in self.path.split("."):
            # A class's attribute is read unbound, because reading a property otherwise runs it. A
            # module may define names only when they are requested, so it needs `getattr`.
            attribute = getattr if isinstance(found, ModuleType) else inspect.getattr_static
            try:
                found = attribute(found, name)
            except AttributeError:
                return f"has no {self}"
        return self._missing_of(found)

    def _missing_of(self, found: Any) -> str | None:
        function = _plain(found)
        if self.parameters:
            taken = inspect.signature(function).parameters
            for name in self.parameters:
                if name not in taken:
                    return f"has {self} without the parameter {name}"
        if self.mentions:
            used = set(_names(getattr(inspect.unwrap(function), "__code__", None)))
            for name in self.mentions:
                if name not in used:
                    return f"has {self} without {name} in it"
        return None


def check_touches(hook: str, touches: Iterable[Touch]) -> None:
    """Raises HookBroken for the first of `touches` that is missing; `hook` is a hook's
    `__name__`."""
    for touch in touches:
        if missing := touch.missing():
            raise HookBroken(broken(hook, missing))


def broken(hook: str, missing: str) -> str:
    """The message for the operator of a process whose hook does not find what it needs."""
    module = sys.modules.get(hook)
    fields = header(module.__doc__ if module is not None else None)
    library = fields.get("Library", "a library")
    advice = f"install one of {fields['Versions']}" if "Versions" in fields else "install another"
    return (
        f"{library} {missing}, which the hook {hook} needs: {advice}, or mend the hook as "
        "docs/hooks.md says"
    )


def header(docstring: str | None) -> Mapping[str, str]:
    """The fields of a hook's docstring, by their names; empty for another module."""
    fields: dict[str, str] = {}
    last = ""
    for line in (docstring or "").splitlines():
        name, colon, text = line.strip().partition(": ")
        if colon and name in FIELDS:
            last = name
            fields[name] = text.strip()
        elif not line.strip():
            last = ""
        elif last:
            fields[last] += f" {line.strip()}"
    return fields


def _plain(found: Any) -> Any:
    if isinstance(found, staticmethod | classmethod):
        return found.__func__
    return found.fget if isinstance(found, property) else found


def _names(code: CodeType | None) -> Iterator[str]:
    """Names and string constants in a function's code and in the functions within it."""
    if code is None:
        return
    yield from code.co_names
    yield from code.co_varnames
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _names(constant)
