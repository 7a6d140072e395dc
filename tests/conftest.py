"""Settings of every test."""

import gc

from hypothesis import HealthCheck, settings

from pixtral_core.server import garbage

# The machine may be busy with something else: an example may take any time, and so may its making.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# The tests' modules import all that they need, torch and vLLM among it.
garbage.search_rarely()


def pytest_collection_finish() -> None:
    """From here on, garbage is searched for as always, and among what the tests make alone."""
    gc.collect()
    gc.freeze()
    garbage.search_as_usual()
