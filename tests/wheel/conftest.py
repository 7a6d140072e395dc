"""The wheel, and environments that hold nothing but it and what one lock names."""

import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.wheel.environment import KEPT, LOCKS, Environment, copy_build_context, install, run_pip


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, from the files that the images' builder gets, by the backend of their lock."""
    source = tmp_path_factory.mktemp("source")
    copy_build_context(source)
    made = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(made)]
    run_pip("wheel", *options, str(source))
    (found,) = made.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def environments(wheel: Path) -> Mapping[str, Environment]:
    """All environments, by their extras. Two are made at once, the largest first."""
    made = {extra: Environment(extra, KEPT / extra) for extra in LOCKS}
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(install, each, wheel, LOCKS[each.extra]) for each in made.values()]
    for installation in running:
        installation.result()
    return made


@pytest.fixture(params=LOCKS)
def environment(
    request: pytest.FixtureRequest, environments: Mapping[str, Environment]
) -> Environment:
    return environments[request.param]
