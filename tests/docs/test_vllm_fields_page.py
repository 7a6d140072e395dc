"""docs/vllm_fields.md is of the vLLM that is installed and of the gateway's own request."""

import pytest

from tools import vllm_fields_page
from tools.vllm_fields_page import fate_of


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert vllm_fields_page.main(["--check"]) == 0, capsys.readouterr().out


def test_a_field_that_vllm_adds_is_found() -> None:
    with pytest.raises(KeyError):
        fate_of("a_field_of_tomorrow")
