import subprocess
import sys

SCRIPT = """
import logging
from pixtral_core.telemetry.logs import configure_logging
configure_logging({level!r}, "text")
for name in ("pixtral_encoder.process", "PIL.TiffImagePlugin", "aiohttp.client"):
    for level in ("debug", "info", "warning"):
        getattr(logging.getLogger(name), level)("%s of %s", level, name)
"""


def told(level: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(level=level)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    return [line.partition(": ")[2] for line in ran.stderr.splitlines()]


def test_of_libraries_not_even_debug_tells_what_they_were_given() -> None:
    assert told("debug") == [
        "debug of pixtral_encoder.process",
        "info of pixtral_encoder.process",
        "warning of pixtral_encoder.process",
        "info of PIL.TiffImagePlugin",
        "warning of PIL.TiffImagePlugin",
        "info of aiohttp.client",
        "warning of aiohttp.client",
    ]


def test_what_is_less_severe_is_not_logged() -> None:
    assert told("warning") == [
        "warning of pixtral_encoder.process",
        "warning of PIL.TiffImagePlugin",
        "warning of aiohttp.client",
    ]


OTHER_FORMAT = """
import logging
from pixtral_core.telemetry.logs import configure_logging
configure_logging("info", "text")
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter(
    "%(process)d %(thread)d %(threadName)s %(processName)s %(lineno)d %(relativeCreated)d "
    "%(message)s"
))
logger = logging.getLogger("vllm")
logger.addHandler(handler)
logger.propagate = False
logger.warning("of a library")
"""


def test_a_library_with_a_format_of_its_own_can_log() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", OTHER_FORMAT],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    (line,) = ran.stderr.splitlines()
    process, thread, *_, message = line.split(maxsplit=6)
    assert process.isdecimal()
    assert thread.isdecimal()
    assert message == "of a library"
