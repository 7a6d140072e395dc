"""These tests need a running stack and packages of their own: `make test-clients`."""

import os

import pytest

URL_VARIABLE = "PIXTRAL_CLIENTS_URL"

# A run of all tests from elsewhere has neither.
collect_ignore_glob = [] if URL_VARIABLE in os.environ else ["*"]


@pytest.fixture(scope="session")
def url() -> str:
    """The gateway's HTTP server, without a path."""
    return os.environ[URL_VARIABLE]
