"""docs/vllm_fields.md is of the vLLM that is installed and of the gateway's own requests."""

import pytest

from tools import vllm_fields_page
from tools.vllm_fields_page import fate_of, fate_of_route


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert vllm_fields_page.main(["--check"]) == 0, capsys.readouterr().out


def test_a_field_or_route_that_vllm_adds_is_found() -> None:
    for of in vllm_fields_page.REQUESTS:
        with pytest.raises(KeyError):
            fate_of("a_field_of_tomorrow", of)
    with pytest.raises(KeyError):
        fate_of_route("/v1/tomorrow")


def test_the_routes_of_vllm_are_read_from_its_source() -> None:
    found = set(vllm_fields_page.routes())
    assert {"/v1/chat/completions", "/v1/responses", "/metrics", "/ping", "/sleep"} <= found
