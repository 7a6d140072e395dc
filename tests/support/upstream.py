"""Imitates a library that has renamed something, for the tests of hooks."""

import importlib
import inspect
from types import ModuleType
from typing import Any

import pytest

from pixtral_core.hooks import FIELDS, HookBroken, Touch, header


def assert_still_there(hook: ModuleType) -> None:
    """The library has all that the hook touches; without any part, the check says what to do."""
    fields = header(hook.__doc__)
    assert set(fields) == set(FIELDS)
    hook.check_upstream()
    assert hook.TOUCHES
    for touch in hook.TOUCHES:
        renames = [_rename]
        if touch.parameters or touch.mentions:
            renames.append(_change)
        for rename in renames:
            with pytest.MonkeyPatch.context() as patch:
                rename(touch, patch)
                with pytest.raises(HookBroken) as broken:
                    hook.check_upstream()
            message = str(broken.value)
            assert str(touch) in message
            assert hook.__name__ in message
            assert f"install one of {fields['Versions']}" in message
    hook.check_upstream()


def _rename(touch: Touch, patch: pytest.MonkeyPatch) -> None:
    owner, name = _owner(touch)
    holders: tuple[Any, ...] = (owner,)
    if not isinstance(owner, ModuleType):
        holders = inspect.getmro(owner if isinstance(owner, type) else type(owner))[:-1]
    for holder in holders:
        if name in vars(holder):
            patch.delattr(holder, name)


def _change(touch: Touch, patch: pytest.MonkeyPatch) -> None:
    owner, name = _owner(touch)
    patch.setattr(owner, name, lambda: None)


def _owner(touch: Touch) -> tuple[Any, str]:
    *parents, name = touch.path.split(".")
    owner: Any = importlib.import_module(touch.module)
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name
