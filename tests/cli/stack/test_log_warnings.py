"""Logs as the tiers write them."""

import logging
from pathlib import Path

import pytest

from pixtral_cli.stack.log_warnings import LogWarnings
from pixtral_core.telemetry.logs import JsonFormatter, TextFormatter

TEXT = "Redis does not answer (connection): so [much] for it"


def line(
    level: int = logging.WARNING, name: str = "pixtral_core.cache.redis_state", text: str = TEXT
) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, text, (), None)


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_warnings_of_the_tiers_are_told_and_nothing_else(
    tmp_path: Path, formatter: logging.Formatter
) -> None:
    log = tmp_path / "gateway.log"
    warnings = LogWarnings(tmp_path)
    records = [
        line(logging.INFO),
        line(name="vllm.engine", text="another's"),
        line(),
        line(logging.ERROR, text="the device is lost"),
    ]
    log.write_text(
        "".join(f"{formatter.format(each)}\n" for each in records)
        + 'Traceback (most recent call last):\n{"no": "record"}\n{not JSON\n'
    )
    assert [*warnings.new()] == [("gateway", TEXT), ("gateway", "the device is lost")]
    assert [*warnings.new()] == []


def test_a_line_is_told_once_it_is_whole_and_once_for_all_tiers(tmp_path: Path) -> None:
    now = 0.0
    warnings = LogWarnings(tmp_path, lambda: now)
    written = TextFormatter().format(line()) + "\n"
    log = tmp_path / "encoder.log"
    log.write_text(written[:40])
    assert [*warnings.new()] == []
    log.write_text(written)
    (tmp_path / "gateway.log").write_text(written)
    assert [*warnings.new()] == [("encoder", TEXT)]
    now = 31.0
    log.write_text(written * 2)
    assert [*warnings.new()] == [("encoder", TEXT)]
