"""Nothing of a stack outlives it, however it ends. The processes are stand-ins; Redis is real."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pixtral_cli.stack.linux_processes import descendants
from pixtral_cli.stack.process_plan import Process, Redis
from pixtral_cli.stack.process_stack import Progress, Stack, StackError
from pixtral_cli.stack.redis_server import find_redis_server

STAND_IN = Path(__file__).parents[2] / "support" / "stand_in_process.py"
DEADLINE = 60.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not in {DEADLINE} s: {what}"
        time.sleep(0.02)


def stand_in(
    directory: Path, name: str, *flags: str, connects: dict[str, str] | None = None
) -> Process:
    command = [sys.executable, str(STAND_IN), "--note", str(directory / f"{name}.note"), *flags]
    return Process(name, command, connects or {})


def three_tiers(
    directory: Path, *decoder_flags: str, gateway_flags: Sequence[str] = ()
) -> list[Process]:
    return [
        stand_in(directory, "encoder"),
        stand_in(directory, "decoder", "--child", *decoder_flags),
        stand_in(
            directory,
            "gateway",
            *gateway_flags,
            connects={"--encoders": "encoder", "--decoders": "decoder"},
        ),
    ]


def stack(directory: Path, processes: Sequence[Process], **options: Any) -> Stack:
    binary = find_redis_server()
    assert binary is not None
    options = {"grace_seconds": 5.0, "start_timeout": DEADLINE, **options}
    return Stack(processes, redis=Redis(str(binary), "64mb"), log_dir=directory, **options)


def note(directory: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / f"{name}.note").read_text())
    return found


# Other tests' processes, such as multiprocessing's own helper, which lives as long as this one.
BEFORE: set[int] = set()


@pytest.fixture(autouse=True)
def before() -> None:
    BEFORE.clear()
    BEFORE.update(descendants(os.getpid()))


def started() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if pid not in BEFORE]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def all_ended(pids: Sequence[int]) -> bool:
    return not any(is_alive(pid) for pid in pids)


def assert_whole(pids: Sequence[int]) -> None:
    """Guard, supervisor, Redis, three tiers and the decoder's child."""
    assert len(pids) == 7
    assert all(is_alive(pid) for pid in pids)


def test_starts_in_order_and_leaves_nothing(tmp_path: Path) -> None:
    seen: list[Progress] = []
    with stack(tmp_path, three_tiers(tmp_path), progress=seen.append) as running:
        pids = started()
        assert_whole(pids)
        gateway = note(tmp_path, "gateway")
        assert gateway["arguments"] == [
            *("--encoders", running.addresses["encoder"].grpc),
            *("--decoders", running.addresses["decoder"].grpc),
        ]
        assert running.target == running.addresses["gateway"].grpc
        steps = [(step.name, step.state) for step in seen]
        assert steps[:2] == [("redis", "starting"), ("redis", "ready")]
        assert steps.index(("gateway", "starting")) > steps.index(("encoder", "loading"))
        assert steps.index(("gateway", "starting")) > steps.index(("decoder", "loading"))
        assert {name for name, state in steps if state == "ready"} == {
            *("redis", "encoder", "decoder", "gateway")
        }
    assert all_ended(pids)


def test_a_process_that_loads_says_how_far_it_is(tmp_path: Path) -> None:
    (tmp_path / "encoder.loaded").write_text("99")
    seen: list[Progress] = []
    with stack(tmp_path, three_tiers(tmp_path, "--loaded", "40"), progress=seen.append):
        steps = [(step.state, step.percent) for step in seen if step.name == "decoder"]
    assert steps == [("starting", None), ("loading", None), ("loading", 40), ("ready", None)]
    # That of an earlier stack is not the encoder's.
    assert {step.percent for step in seen if step.name == "encoder"} == {None}


def test_addresses_of_an_earlier_stack_are_not_taken_for_its_own(tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text('{"grpc": "127.0.0.1:1", "metrics": "127.0.0.1:2"}')
    with stack(tmp_path, three_tiers(tmp_path)) as running:
        assert running.addresses["encoder"].grpc != "127.0.0.1:1"


def test_redis_is_limited_and_needs_its_password(tmp_path: Path) -> None:
    with stack(tmp_path, three_tiers(tmp_path)):
        urls = {note(tmp_path, name)["redis"] for name in ("encoder", "decoder", "gateway")}
        (url,) = urls
        with redis.Redis.from_url(url) as client:
            config = client.config_get("maxmemory*")
            assert config["maxmemory"] == str(64 * 2**20)
            assert config["maxmemory-policy"] == "allkeys-lfu"
            assert client.config_get("save") == {"save": ""}
            assert client.config_get("appendonly") == {"appendonly": "no"}
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
            password = client.connection_pool.connection_kwargs["password"]
            port = client.connection_pool.connection_kwargs["port"]
        stranger = redis.Redis(port=port, retry=Retry(NoBackoff(), 0))
        with stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        for pid in started():
            assert password not in " ".join(psutil.Process(pid).cmdline())


def test_a_given_redis_is_used_and_none_started(tmp_path: Path) -> None:
    url = "redis://127.0.0.1:1/0"
    running = Stack(
        [stand_in(tmp_path, "gateway")],
        redis=None,
        environment={"PIXTRAL_REDIS_URL": url},
        log_dir=tmp_path,
    )
    with running:
        assert note(tmp_path, "gateway")["redis"] == url
        assert not (tmp_path / "redis.log").exists()


def test_a_directory_may_be_used_again(tmp_path: Path) -> None:
    (tmp_path / "gateway.json").write_text('{"grpc": "127.0.0.1:1", "metrics": "127.0.0.1:1"}')
    with Stack([stand_in(tmp_path, "gateway")], redis=None, log_dir=tmp_path) as running:
        assert running.target != "127.0.0.1:1"


def test_exception_in_the_block(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupted() -> None:
        with stack(tmp_path, three_tiers(tmp_path)):
            pids.extend(started())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(pids) == 7
    assert all_ended(pids)


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    processes = three_tiers(tmp_path, "--ignore-sigterm")
    with stack(tmp_path, processes, grace_seconds=0.5):
        pids = started()
        assert_whole(pids)
    wait_until(lambda: all_ended(pids), "all have ended")


def test_death_of_a_process_ends_all(tmp_path: Path) -> None:
    with stack(tmp_path, three_tiers(tmp_path)) as running:
        pids = started()
        os.kill(note(tmp_path, "encoder")["pid"], signal.SIGKILL)
        with pytest.raises(StackError, match="the encoder ended with exit code -9"):
            running.wait()
        wait_until(lambda: all_ended(pids), "all have ended")


def test_warnings_of_a_process_are_told_to_who_waits(tmp_path: Path) -> None:
    class Told(Exception):
        pass

    told: list[tuple[str, str]] = []

    def warned(name: str, message: str) -> None:
        told.append((name, message))
        raise Told

    with Stack([stand_in(tmp_path, "gateway")], redis=None, log_dir=tmp_path) as running:
        with (tmp_path / "gateway.log").open("a") as log:
            log.write("2026-01-01 10:00:00,000 WARNING pixtral_core.x: Redis does not answer\n")
        with pytest.raises(Told):
            running.wait(warned)
    assert told == [("gateway", "Redis does not answer")]


def test_failure_at_start_says_why(tmp_path: Path) -> None:
    processes = three_tiers(tmp_path, "--fail", "weights are missing")
    with pytest.raises(StackError) as failure:
        stack(tmp_path, processes).start()
    assert "the decoder ended with exit code 1" in str(failure.value)
    assert "weights are missing" in str(failure.value)
    assert str(tmp_path / "decoder.log") in str(failure.value)
    assert started() == []


def test_unknown_command_says_why(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"the supervisor has ended[\s\S]*no-such-program"):
        stack(tmp_path, [Process("gateway", ["/no-such-program"])]).start()
    assert started() == []


def test_never_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = three_tiers(tmp_path, gateway_flags=["--never-serve"])
    ready: set[str] = set()
    hour = 3600.0

    def now() -> float:
        """The time is over once all others are ready, and not before."""
        return time.monotonic() + (hour if ready == {"redis", "encoder", "decoder"} else 0.0)

    def note_ready(step: Progress) -> None:
        if step.state == "ready":
            ready.add(step.name)

    monkeypatch.setattr(sys.modules[Stack.__module__], "time", SimpleNamespace(monotonic=now))
    with pytest.raises(StackError, match="not ready after 3600 s: gateway;"):
        stack(tmp_path, processes, start_timeout=hour, progress=note_ready).start()
    assert started() == []


def test_temporary_logs_are_kept_on_failure_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Stack([stand_in(tmp_path, "gateway")], redis=None) as running:
        assert (running.log_dir / "gateway.log").exists()
    assert not running.log_dir.exists()

    failing = Stack([stand_in(tmp_path, "gateway", "--fail", "no")], redis=None)
    with pytest.raises(StackError):
        failing.start()
    assert (failing.log_dir / "gateway.log").read_text() == "no\n"


CALLER = """
import os, signal, sys
from pathlib import Path
from test_process_stack import stack, three_tiers

# Whatever the shell that runs the tests has these ignored for: nohup, or a job in the background.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
directory = Path(sys.argv[1])
with stack(directory, three_tiers(directory)):
    sys.stdout.write("up\\n")
    sys.stdout.flush()
    if len(sys.argv) > 2:
        os._exit(int(sys.argv[2]))
    signal.pause()
"""


@contextlib.contextmanager
def caller(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another Python process that holds a stack; yields it with the pids of all it started."""
    with subprocess.Popen(
        [sys.executable, "-c", CALLER, str(directory), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


def family(directory: Path) -> list[int]:
    """The pids of a stack, from what its stand-ins wrote; the parents are gone perhaps."""
    notes = [note(directory, name) for name in ("encoder", "decoder", "gateway")]
    return [pid for entry in notes for pid in (entry["pid"], entry["child"]) if pid]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_death_of_the_caller(tmp_path: Path, signum: signal.Signals) -> None:
    with caller(tmp_path) as process:
        pids = descendants(process.pid)
        assert_whole(pids)
        process.send_signal(signum)
        wait_until(lambda: all_ended(pids), f"all have ended after {signum.name}")


def test_exit_of_the_caller_without_cleaning_up(tmp_path: Path) -> None:
    with caller(tmp_path, "0") as process:
        assert process.wait(DEADLINE) == 0
        wait_until(lambda: all_ended(family(tmp_path)), "all have ended after os._exit")


def test_ctrl_c(tmp_path: Path) -> None:
    with caller(tmp_path) as process:
        pids = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        process.wait(DEADLINE)
        assert all_ended(pids)


@pytest.mark.parametrize("victim", [0, 1], ids=["guard", "supervisor"])
def test_death_of_guard_or_supervisor(tmp_path: Path, victim: int) -> None:
    with caller(tmp_path) as process:
        pids = descendants(process.pid)
        assert_whole(pids)
        guard = psutil.Process(process.pid).children()[0]
        supervisor = guard.children()[0]
        (guard, supervisor)[victim].kill()
        wait_until(lambda: all_ended(pids), "all have ended")


def test_second_signal_is_not_graceful(tmp_path: Path) -> None:
    processes = three_tiers(tmp_path, "--ignore-sigterm")
    running = stack(tmp_path, processes, grace_seconds=DEADLINE * 10)
    with running:
        pids = started()
        guard = psutil.Process(started()[0])
        gateway = note(tmp_path, "gateway")["pid"]
        guard.terminate()
        wait_until(lambda: not is_alive(gateway), "the gateway has ended")
        guard.terminate()
        wait_until(lambda: all_ended(pids), "all have ended")
