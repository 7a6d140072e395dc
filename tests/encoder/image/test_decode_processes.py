"""Processes that decode images, which end when they must and leave nothing behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pixtral_core.image.formats import ImageFormat
from pixtral_core.image.header import read_header
from pixtral_encoder.image import decode_processes, decode_worker
from pixtral_encoder.image.decode_processes import (
    DecodeProcess,
    DecodeProcesses,
    DecodeTimeout,
    ProcessLost,
)
from pixtral_encoder.image.decode_worker import Job, Reply
from pixtral_encoder.image.decoding import TargetSize, Undecodable, decode, memory_bytes
from tests.encoder.pictures import file_of, large_png, picture, png

MIB = 1 << 20
SIZE = TargetSize(64, 48)
# Much work for few bytes.
LARGE = large_png(5000, 4999)


def job_of(data: bytes, *, memory: int | None = None, seconds: float = 60.0) -> Job:
    header = read_header(data, frozenset(ImageFormat))
    assert header is not None
    least = memory_bytes(header, len(data), SIZE)
    return Job(header, SIZE, least if memory is None else memory, seconds)


@pytest.fixture
def process() -> Iterator[DecodeProcess]:
    made = DecodeProcess()
    yield made
    made.end()


def pid_of(process: DecodeProcess) -> int:
    assert process._running is not None
    return process._running.popen.pid


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_that_takes_too_long_is_ended(process: DecodeProcess) -> None:
    process.start()
    first = pid_of(process)
    with pytest.raises(DecodeTimeout) as late:
        process.decode(job_of(LARGE, seconds=0.1), LARGE)
    assert late.value.cpu_seconds >= 0.1
    assert not Path(f"/proc/{first}").exists()
    # The next image has another.
    assert process.decode(job_of(png()), png()).shape == SIZE.shape
    assert pid_of(process) != first


def test_time_that_others_take_is_not_the_images(
    process: DecodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock says that it is over, and the processor that it has not begun."""
    process.start()
    pid = pid_of(process)
    os.kill(pid, signal.SIGSTOP)
    waits: list[float] = []
    monkeypatch.setattr(decode_processes, "CLOCK_FACTOR", 1e6)

    def taken(running: object) -> float:
        waits.append(0.0)
        if len(waits) == 3:
            os.kill(pid, signal.SIGCONT)
        return 0.0

    monkeypatch.setattr(decode_processes._Running, "taken", taken)
    assert process.decode(job_of(png(), seconds=0.01), png()).shape == SIZE.shape
    assert len(waits) >= 3
    assert pid_of(process) == pid


def test_one_that_only_waits_is_ended_by_the_clock(process: DecodeProcess) -> None:
    process.start()
    os.kill(pid_of(process), signal.SIGSTOP)
    with pytest.raises(DecodeTimeout) as late:
        process.decode(job_of(png(), seconds=0.05), png())
    assert late.value.cpu_seconds < 0.05


def test_the_time_is_each_images_own(process: DecodeProcess) -> None:
    """The memory that a process took for others does not count for the last one."""
    for _ in range(3):
        process.decode(job_of(LARGE), LARGE)
    with pytest.raises(DecodeTimeout) as late:
        process.decode(job_of(LARGE, seconds=0.01), LARGE)
    assert late.value.cpu_seconds < 0.5


def test_one_that_needs_more_memory_than_it_may_is_refused(process: DecodeProcess) -> None:
    with pytest.raises(Undecodable) as refused:
        process.decode(job_of(LARGE, memory=100 * MIB), LARGE)
    assert refused.value.reason in ("IMAGE_TOO_COMPLEX", "IMAGE_MALFORMED")
    # In the same process.
    pid = pid_of(process)
    assert process.decode(job_of(png()), png()).shape == SIZE.shape
    assert pid_of(process) == pid


@pytest.mark.parametrize("form", [each.upper() for each in ImageFormat])
def test_what_an_image_may_need_is_enough(process: DecodeProcess, form: str) -> None:
    image = picture(8, 8).resize((2000, 1500))
    data = file_of(image, form)
    assert process.decode(job_of(data), data).shape == SIZE.shape


@pytest.mark.parametrize("form", ["BMP", "AVIF", "TIFF", "JPEG2000", "PPM"])
def test_a_header_that_claims_little_gives_little_memory(process: DecodeProcess, form: str) -> None:
    data = file_of(
        picture(8, 8).resize((9000, 7000)), form, **({"speed": 10} if form == "AVIF" else {})
    )
    job = job_of(data, memory=40 * MIB)
    with pytest.raises((Undecodable, ProcessLost)):
        process.decode(job, data)
    assert process.decode(job_of(png()), png()).shape == SIZE.shape


def test_what_libraries_tell_of_a_file_is_not_in_the_log(
    process: DecodeProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = file_of(picture(64, 48), "TIFF", compression="tiff_lzw")
    # libtiff has something to say of rows that end too soon.
    cut = bytearray(whole)
    cut[200:900] = bytes(700)
    with pytest.raises(Undecodable):
        process.decode(job_of(bytes(cut)), bytes(cut))
    assert capfd.readouterr().err == ""


def test_a_process_that_is_killed_costs_no_answer(process: DecodeProcess) -> None:
    process.start()
    first = pid_of(process)
    os.kill(first, signal.SIGKILL)
    header = read_header(png())
    assert header is not None
    found = process.decode(job_of(png()), png())
    assert np.array_equal(found, decode(png(), header, SIZE))
    assert pid_of(process) != first


def test_a_file_that_always_ends_its_process_is_told_from_one(
    process: DecodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = decode_processes._started

    def doomed() -> object:
        running = started()
        running.popen.kill()
        return running

    monkeypatch.setattr(decode_processes, "_started", doomed)
    with pytest.raises(ProcessLost):
        process.decode(job_of(png()), png())


def test_it_knows_no_secret_and_leaves_no_core(
    process: DecodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXTRAL_REDIS_URL", "redis://:hunter2hunter2@localhost")
    process.start()
    proc = Path(f"/proc/{pid_of(process)}")
    assert b"hunter2" not in (proc / "environ").read_bytes()
    (core,) = (line for line in (proc / "limits").read_text().splitlines() if "core file" in line)
    assert core.split()[4:6] == ["0", "0"]


PARENT = """
import sys, time
from pixtral_encoder.image.decode_processes import DecodeProcess
process = DecodeProcess()
process.start()
print(process._running.popen.pid, flush=True)
time.sleep(600)
"""


def test_it_ends_with_its_encoder() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        # As from a terminal, which sends it to all.
        os.kill(pid, signal.SIGINT)
        assert Path(f"/proc/{pid}/stat").exists()
        parent.kill()
    wait_until(lambda: not Path(f"/proc/{pid}/exe").exists() or is_zombie(pid))


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_large_images_wait_for_memory_and_others_do_not_wait_for_them() -> None:
    large, small = job_of(LARGE), job_of(png())
    processes = DecodeProcesses(3, memory_bytes=large.memory_bytes * 3 // 2)
    await processes.start()
    ended: list[str] = []

    async def decode(name: str, job: Job, data: bytes) -> None:
        await processes.decode(job, data)
        ended.append(name)

    first, second, third = [
        asyncio.create_task(decode(name, job, data))
        for name, job, data in (("1", large, LARGE), ("2", large, LARGE), ("small", small, png()))
    ]
    while not first.done():
        await asyncio.sleep(0.01)
        # Another one of its kind does not fit beside it.
        assert processes._large.taken_bytes <= large.memory_bytes
    await asyncio.gather(second, third)
    assert ended == ["small", "1", "2"]
    assert all_is_free(processes, 3)
    # Larger than all that there is.
    narrow = DecodeProcesses(2, memory_bytes=1)
    assert (await narrow.decode(small, png())).shape == SIZE.shape
    processes.close()
    narrow.close()


def all_is_free(processes: DecodeProcesses, count: int) -> bool:
    taken = processes._large.taken_bytes + processes._ordinary.taken_bytes
    return taken == 0 and len(processes._idle) == count


async def test_one_that_nobody_waits_for_any_more_leaves_its_place() -> None:
    processes = DecodeProcesses(1, memory_bytes=1 << 40)
    await processes.start()
    at_work = asyncio.create_task(processes.decode(job_of(LARGE, seconds=0.3), LARGE))
    waiting = [asyncio.create_task(processes.decode(job_of(png()), png())) for _ in range(3)]
    await asyncio.sleep(0)
    at_work.cancel()
    waiting[0].cancel()
    results = await asyncio.gather(at_work, *waiting, return_exceptions=True)
    assert [type(each) for each in results[:2]] == [asyncio.CancelledError] * 2
    assert [getattr(each, "shape", None) for each in results[2:]] == [SIZE.shape] * 2
    assert all_is_free(processes, 1)
    processes.close()


async def test_one_that_is_free_in_the_step_of_a_cancel_goes_to_the_next() -> None:
    processes = DecodeProcesses(1, memory_bytes=1 << 40)
    await processes.start()
    room = processes._ordinary
    held = await processes._process(room, 1)
    waiting = [asyncio.create_task(processes.decode(job_of(png()), png())) for _ in range(2)]
    await asyncio.sleep(0)
    # The cancelled task has not run since, so that it still waits.
    waiting[0].cancel()
    processes._free(held, room, 1)
    cancelled, decoded = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert getattr(decoded, "shape", None) == SIZE.shape
    assert all_is_free(processes, 1)
    processes.close()


TEXT = "a text that may quote an image"


@pytest.mark.parametrize(("error", "is_ours"), [(OSError, False), (AttributeError, True)])
def test_an_error_of_ours_is_told_with_its_place(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], is_ours: bool
) -> None:
    def broken(*_: object) -> None:
        raise error(TEXT)

    monkeypatch.setattr(decode_worker, "_limit", lambda *_: None)
    monkeypatch.setattr(decode_worker, "decode", broken)
    file, output = os.memfd_create("file"), os.memfd_create("output")
    os.ftruncate(output, SIZE.nbytes)
    reply = decode_worker._done(job_of(png()), file, output, 0)
    os.close(file)
    os.close(output)
    assert reply.reason == "IMAGE_MALFORMED"
    assert Reply.from_bytes(reply.to_bytes()) == reply
    assert bool(reply.fault) == is_ours
    assert ("AttributeError" in reply.fault and "in broken" in reply.fault) == is_ours
    assert TEXT not in reply.fault


def test_a_fault_of_ours_is_logged(
    process: DecodeProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        DecodeProcess,
        "_asked",
        lambda *_: Reply(0.0, "IMAGE_MALFORMED", "AttributeError\n  in broken"),
    )
    with pytest.raises(Undecodable):
        process.decode(job_of(png()), png())
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "AttributeError\n  in broken" in record.message
