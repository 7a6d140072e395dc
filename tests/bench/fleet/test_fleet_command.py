"""The command's arguments, which turns it still asks, and on which GPUs it starts what."""

import argparse
from pathlib import Path
from typing import Any

import pytest

import bench.fleet.__main__ as command
from bench.fleet.asking import Task, Writer
from bench.fleet.results import Results
from bench.fleet.sides import COLOCATED, ROUND_ROBIN, SPLIT, STICKY, TITLES, Fleet, placed
from bench.mix import Album
from bench.simulation.plan import Topology
from bench.workloads import for_fleet

GPUS = ["4", "5", "6"]
TURN: dict[str, Any] = {
    "answered_per_second": 1.0,
    "ttft": {"p50": 1.0, "p90": 1.0, "p99": 1.0},
    "tpot": None,
    "refused": 0,
    "failed": {},
    "moved": 0,
}


def run(monkeypatch: pytest.MonkeyPatch, gpus: list[str], *arguments: str) -> None:
    monkeypatch.setattr(command, "gpus_here", lambda: gpus)
    monkeypatch.setattr("sys.argv", ["bench.fleet", *arguments])
    command.main()


def test_numbers_of_gpus_are_a_list_in_their_order() -> None:
    assert command.counts("4,1,2,2") == [1, 2, 4]


@pytest.mark.parametrize("text", ["", "0", "2,-1", "two", "1.5"])
def test_a_number_below_one_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        command.counts(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "2,4"], "4 GPUs are named, and this machine has 3\n"),
        (["--gpus", "2", "--service-times", "none"], "none is no file"),
    ],
)
def test_what_cannot_be_run_is_refused_in_a_line_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, GPUS, *arguments, "--out", str(tmp_path))
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1


def test_results_that_are_whole_are_reported_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = {"model": "Pixtral-12B", "on": "GPU", "kv_cache_bytes": 12 * 10**9}
    results = Results(tmp_path, settings)
    for side in (STICKY, SPLIT):
        results.add(2, "new images", "Some.", side, TURN)
    asked = ["--gpus", "2", "--only", "new images", "--turns", "1", "--out", str(tmp_path)]
    run(monkeypatch, [], *asked, "--sides", STICKY, SPLIT)
    printed = capsys.readouterr().out
    assert "new images, 2 GPUs" in printed
    assert "predictions are within 20%" in printed
    assert (tmp_path / "fleet.svg").exists()
    # The simulator has two stock servers and, beside one encoder, one decoder.
    predicted = Results(tmp_path, settings).runs["2"]["new images"]["predicted"]
    rates = {side: each["answered_per_second"] for side, each in predicted.items()}
    assert 1.5 < rates[STICKY] / rates[SPLIT] < 2.1
    with pytest.raises(SystemExit):
        run(monkeypatch, [], *asked, "--sides", STICKY, SPLIT, COLOCATED)


def test_a_turn_is_asked_once_and_each_side_is_first_in_turn(tmp_path: Path) -> None:
    workloads = for_fleet(2)[:2]
    task = Task(2, workloads, [STICKY, SPLIT], turns=2)
    results = Results(tmp_path, {})
    first, second = workloads
    assert task.missing(results, first) == [(0, STICKY), (0, SPLIT), (1, SPLIT), (1, STICKY)]
    results.add(2, first.name, "", STICKY, TURN)
    assert task.missing(results, first) == [(0, SPLIT), (1, SPLIT), (1, STICKY)]
    for side in (SPLIT, SPLIT):
        results.add(2, first.name, "", side, TURN)
    assert task.missing(results, first) == [(1, STICKY)]
    assert task.missing_sides(results) == [STICKY, SPLIT]
    results.add(2, first.name, "", STICKY, TURN)
    assert not task.missing(results, first)
    for _ in range(task.turns):
        results.add(2, second.name, "", SPLIT, TURN)
    assert task.missing_sides(results) == [STICKY]


@pytest.mark.parametrize("number", range(4))
def test_sides_are_sent_as_much_and_no_image_or_text_twice(number: int) -> None:
    workload = for_fleet(2)[number].small()
    writer, album = Writer(is_small=True), Album(workload.sizes)
    one, other = ([*writer.sessions(workload, 1, album)] for _ in range(2))
    assert shapes(one) == shapes(other) != shapes(writer.sessions(workload, 2, album))
    prompts = [[prompt for session in side for prompt in session] for side in (one, other)]
    images = [{image for each in side for image in each.shown} for side in prompts]
    texts = [{text for each in side for text in each.questions} for side in prompts]
    assert not images[0] & images[1]
    assert not texts[0] & texts[1]


def shapes(sessions: list[list[Any]]) -> list[list[Any]]:
    return [
        [
            (
                [text.partition(":")[2] for text in prompt.questions],
                [size for _, size in prompt.shown],
                prompt.output_tokens,
            )
            for prompt in session
        ]
        for session in sessions
    ]


def test_a_split_has_gpus_of_its_own_and_a_co_located_encoder_its_decoders() -> None:
    assert placed(Topology(1, 2, colocated=False), GPUS) == (["4"], ["5", "6"])
    assert placed(Topology(3, 3, colocated=True), GPUS) == (GPUS, GPUS)


def test_each_server_sees_one_gpu_and_all_have_the_same_memory(tmp_path: Path) -> None:
    topologies = {
        SPLIT: Topology(1, 2, colocated=False),
        COLOCATED: Topology(3, 3, colocated=True),
    }
    fleet = Fleet(
        count=3,
        gpus=GPUS,
        model_dir=tmp_path,
        is_small=False,
        is_random=True,
        kv_cache_bytes=10**9,
        topologies=topologies,
        log_dir=tmp_path,
    )
    servers: dict[str, Any] = fleet.servers([*TITLES])
    assert set(servers) == {"stock-1", "stock-2", "stock-3", SPLIT, COLOCATED}
    for name, gpu in zip(("stock-1", "stock-2", "stock-3"), GPUS, strict=True):
        assert servers[name].variables == {"CUDA_VISIBLE_DEVICES": gpu}
        given = servers[name].run.args[-1]
        assert given[given.index("--kv-cache-memory-bytes") + 1] == "1000000000"
    given = servers[SPLIT].run.keywords
    assert (given["encoder_gpus"], given["decoder_gpus"]) == (["4"], ["5", "6"])
    flags = given["decoder_args"]
    assert flags[flags.index("--kv-cache-bytes") + 1] == "1000000000"
    addresses = {name: (f"http://{name}", "") for name in servers}
    assert fleet.addresses(ROUND_ROBIN, addresses) == fleet.addresses(STICKY, addresses)
    assert len(fleet.addresses(STICKY, addresses)) == 3
    assert fleet.addresses(SPLIT, addresses) == [(f"http://{SPLIT}", "")]
