"""On which GPUs the sides start what."""

from pathlib import Path
from typing import Any

from bench.fleet.sides import COLOCATED, ROUND_ROBIN, SPLIT, STICKY, TITLES, Fleet, placed
from bench.simulation.plan import Topology

GPUS = ["4", "5", "6"]


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
