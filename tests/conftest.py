"""Settings of every test."""

from hypothesis import HealthCheck, settings

# The machine may be busy with something else: an example may take any time, and so may its making.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
