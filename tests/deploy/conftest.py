import copy

import pytest

from tests.support.overlays import build_once
from tools.deploy.objects import Object


@pytest.fixture
def production() -> list[Object]:
    """The overlay's objects, to be spoiled."""
    return copy.deepcopy(build_once("production"))
