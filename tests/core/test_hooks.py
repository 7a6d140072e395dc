"""The message of a hook's check about a library that has moved."""

import sys
from types import ModuleType

import pytest

from pixtral_core.hooks import HookBroken, Touch, check_touches, header

HEADER = """Does a thing.

Library: another
Changes: one thing
    and another
Why: because
Upstream: none known
Versions: another 1.0 to 2.0

More: of it.
"""


class Connection:
    def __init__(self) -> None:
        self._sock = None

    @property
    def peer(self) -> str:
        return self.name

    @classmethod
    def open(cls, host: str) -> None:
        """Opens."""

    name = "peer"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> str:
    module = ModuleType("another_library")
    module.Connection = Connection  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    hook = ModuleType("a_hook", HEADER)
    monkeypatch.setitem(sys.modules, hook.__name__, hook)
    return module.__name__


def test_a_header_is_read_by_its_fields() -> None:
    assert header(HEADER) == {
        "Library": "another",
        "Changes": "one thing and another",
        "Why": "because",
        "Upstream": "none known",
        "Versions": "another 1.0 to 2.0",
    }
    assert header("No hook.") == header(None) == {}


def test_a_library_that_has_it_all_passes(library: str) -> None:
    touches = [
        Touch(library, "Connection.__init__", mentions=("_sock",)),
        Touch(library, "Connection.peer", mentions=("name",)),
        Touch(library, "Connection.open", parameters=("host",)),
    ]
    check_touches("a_hook", touches)


@pytest.mark.parametrize(
    ("touch", "lack"),
    [
        (Touch("no_such_library", "x"), "has no module no_such_library"),
        (Touch("another_library", "Pool"), "has no another_library.Pool"),
        (Touch("another_library", "Connection.close"), "has no another_library.Connection.close"),
        (
            Touch("another_library", "Connection.open", parameters=("port",)),
            "has another_library.Connection.open without the parameter port",
        ),
        (
            Touch("another_library", "Connection.__init__", mentions=("_socket",)),
            "has another_library.Connection.__init__ without _socket in it",
        ),
    ],
    ids=str,
)
@pytest.mark.usefixtures("library")
def test_the_message_says_what_is_gone_and_what_to_do(touch: Touch, lack: str) -> None:
    with pytest.raises(HookBroken) as broken:
        check_touches("a_hook", [touch])
    assert str(broken.value) == (
        f"another {lack}, which the hook a_hook needs: install one of another 1.0 to 2.0, or mend "
        "the hook as docs/hooks.md says"
    )
