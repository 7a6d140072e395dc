import socket

import pytest

from pixtral_gateway.api.http.host_check import check_host
from pixtral_gateway.api.openai.errors import Refused

# Clients that were given it as an address to listen on ask by it, too.
ANY = "0.0.0.0"  # noqa: S104


def own_address() -> str:
    """An address of this machine that is no loopback address, where it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # No packet is sent: this only chooses a route.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no other address")
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    "host",
    [
        None,
        *("localhost", "LOCALHOST:8000", "a.localhost", "127.0.0.1:8000", "127.9.9.9"),
        *("[::1]", "[::1]:8000", ANY, f"{ANY}:8000", "[::]:8000"),
    ],
)
def test_this_machine_is_asked_by_its_names_and_addresses(host: str | None) -> None:
    check_host(host)


def test_this_machine_is_asked_by_the_address_that_others_have_for_it() -> None:
    check_host(f"{own_address()}:8000")


@pytest.mark.parametrize(
    "host",
    [
        *("example.org", "example.org:8000", "localhost.example.org", "127.0.0.1.example.org"),
        *("192.0.2.1", "[2001:db8::1]:8000", "224.0.0.1", "", "[", "0x7f000001", "127.1"),
    ],
)
def test_another_host_is_refused_and_told_what_to_set(host: str) -> None:
    with pytest.raises(Refused) as refused:
        check_host(host)

    assert refused.value.status == 421
    assert "PIXTRAL_API_KEYS" in refused.value.message
