import copy
import functools

import pytest

from tools.deploy.manifests import build
from tools.deploy.objects import Object

build_once = functools.cache(build)


@pytest.fixture
def production() -> list[Object]:
    """The overlay's objects, to be spoiled."""
    return copy.deepcopy(build_once("production"))
