"""The pages that say how to deploy, run as they are printed, with stand-ins for the cluster."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.cluster.sessions import Desk, blocks_of, set_up
from tests.support.cluster.state import Fault, secret_entries
from tests.support.cluster.tls import CALLS, shake_hands
from tools.deploy.manifests import ROOT

GUIDE = (ROOT / "docs/deploy.md").read_text("utf-8")
FIRST_ANSWER = (ROOT / "docs/how-to/first-answer.md").read_text("utf-8")
ON_GPUS = ("### 1. Images", "### 2. Secrets", "### 3. Apply", "### 4. The first answer")
# A reader's own values, each of which the page asks for by its name.
READERS = {"HF_TOKEN": "hf_reader"}
FORWARD_HTTP = "kubectl port-forward --namespace pixtral deployment/gateway 8000 &\n"

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def desk(tmp_path: Path, cache: Path) -> Desk:
    return set_up(tmp_path, cache)


def on_gpus(page: str) -> list[str]:
    """The blocks from the images to the first answer, and the command in the text after them."""
    (curl,) = re.findall(r"`(curl [^`]+)`", page)
    return [*blocks_of(page, *ON_GPUS), FORWARD_HTTP + curl]


def test_the_page_asks_for_each_value_of_the_readers() -> None:
    for name in READERS:
        assert f"`{name}` is" in GUIDE


def test_kubernetes_from_images_to_the_first_answer(desk: Desk) -> None:
    done = desk.run(on_gpus(GUIDE), READERS)

    assert done.faults == []
    programs = "\n".join(done.state.programs())
    for program in ("docker push", "kubectl apply -k", "pixtral-serve chat", "curl --cacert"):
        assert program in programs
    secrets = {
        name: secret_entries(done.state.get("pixtral", "Secret", f"{name}-tls"))
        for name in ("gateway", "encoder", "decoder", "redis")
    }
    for client, server in CALLS:
        shake_hands(secrets[server], secrets[client], server, is_mutual=True)
    outside = {"ca.crt": secrets["gateway"]["ca.crt"]}
    for name in ("localhost", "pixtral.example.com"):
        shake_hands(secrets["gateway"], outside, name, is_mutual=False)
    for server in ("encoder", "decoder"):
        with pytest.raises(Fault, match="no TLS"):
            shake_hands(secrets[server], outside, server, is_mutual=True)
    with pytest.raises(Fault, match="no TLS"):
        shake_hands(secrets["decoder"], secrets["gateway"], "encoder", is_mutual=True)


def test_a_redis_of_your_own_replaces_the_one_there(desk: Desk) -> None:
    done = desk.run([*blocks_of(GUIDE, *ON_GPUS), *blocks_of(GUIDE, "## Redis")], READERS)

    assert done.faults == []
    assert "url" in secret_entries(done.state.get("pixtral", "Secret", "redis"))
    assert done.state.find("pixtral", "Deployment", "redis") is None


@pytest.mark.parametrize("heading", ["## One machine with one GPU", "### On a laptop"])
def test_one_machine(desk: Desk, heading: str) -> None:
    done = desk.run(blocks_of(GUIDE, heading), {})

    assert done.faults == []
    assert any("pixtral-serve chat" in program for program in done.state.programs())


def test_the_first_answer_by_the_chart(desk: Desk) -> None:
    done = desk.run(blocks_of(FIRST_ANSWER, "# From an empty cluster to the first answer"), {})

    assert done.faults == []
    assert len(done.state.programs()) == 9  # three images, built and pushed


@pytest.mark.parametrize(
    ("page", "heading", "replicas"),
    [("cost.md", "## Scale to zero or not", 0), ("how-to/scale-out.md", "# Scale out", 4)],
)
def test_tiers_are_scaled_by_hand(desk: Desk, page: str, heading: str, replicas: int) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    (block,) = (each for each in blocks_of(text, heading) if "kubectl scale" in each)
    done = desk.run([*blocks_of(GUIDE, *ON_GPUS), block], READERS)

    assert done.faults == []
    decoder = done.state.get("pixtral", "Deployment", "decoder")
    assert decoder["spec"]["replicas"] == replicas


def test_an_upgrade_and_the_way_back(desk: Desk) -> None:
    page = (ROOT / "docs/how-to/upgrade.md").read_text("utf-8")
    done = desk.run(
        [*blocks_of(GUIDE, *ON_GPUS), *blocks_of(page, "# Upgrade and roll back")], READERS
    )

    assert done.faults == []
    assert "rollout undo" in done.state.programs()[-1]


def test_the_readme_of_the_chart(desk: Desk) -> None:
    page = (ROOT / "deploy/helm/pixtral-serve/README.md").read_text("utf-8")
    blocks = blocks_of(page, "# pixtral-serve, a Helm chart")
    done = desk.run(blocks, {"REGISTRY": "registry.example.com"})

    assert done.faults == []
    assert done.state.find("pixtral", "Deployment", "decoder")


def test_the_first_answer_on_one_gpu(desk: Desk) -> None:
    (more,) = re.findall(r"`(--values [^`]+)`", FIRST_ANSWER)
    (block,) = blocks_of(FIRST_ANSWER, "# From an empty cluster to the first answer")
    done = desk.run([block.replace("--wait", f"{more} --wait")], {})

    assert done.faults == []
    assert done.state.find("pixtral", "ResourceClaim", "shared-gpu")


def test_every_shell_block_of_the_page_is_run() -> None:
    headings = (*ON_GPUS, "## Redis", "## One machine with one GPU", "### On a laptop")

    assert len(blocks_of(GUIDE, *headings)) == len(re.findall(r"^```sh$", GUIDE, re.MULTILINE))


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("k8s/base/namespace.yaml", "k8s/namespace.yaml", "no file deploy/k8s/namespace.yaml"),
        ("-k deploy/k8s/weights", "-k deploy/k8s/weight", "no kustomization.yaml"),
        ("apply -k deploy/k8s/weights", "apply -f deploy/k8s/weights", "no file"),
        ("deployment/decoder deployment/gateway\n```", "deployment/decode\n```", '"decode" not'),
        ("job/weights\n", "job/weight\n", '"weight" not found'),
        ("--for=condition=complete", "--for=condition=completed", "condition=completed"),
        ("--timeout=2h job", "--time-out=2h job", "--time-out=2h"),
        ("generic redis --namespace", "generic rediss --namespace", "no Secret redis"),
        ("--from-literal=password=", "--from-literal=pass=", "key password"),
        ('token="$HF_TOKEN"', 'token="$HF_TOKENS"', "HF_TOKENS: unbound variable"),
        ("generic api-keys --namespace pixtral", "generic api-keys", '"default" not found'),
        ('tls.crt="$name.crt"', 'tls.pem="$name.crt"', "not among the entries"),
        ("DNS:$name,DNS:localhost", "DNS:$name", "no TLS with localhost"),
        ("serverAuth,clientAuth", "serverAuth", "no TLS with encoder"),
        ("-CA ca.crt", "-CA other.crt", "other.crt"),
        ("deployment/gateway 50051 &", "deployment/gateway 50052 &", "no port 50052"),
        ("--tls-ca ca.crt --image", "--tls-authority ca.crt --image", "--tls-authority"),
        ("--tls-ca ca.crt --image", "--image", "only one of client and gateway"),
        ("--image cat.jpg", "--image dog.jpg", "no file dog.jpg"),
        ("'sha256:[0-9a-f]*'", "'sha512:[0-9a-f]*'", "the gateway's keys"),
        ("'pixtral-[A-Za-z0-9_-]*' key.txt", "'pixtral-[A-Za-z]*' key.txt", "key"),
        ("make images REGISTRY=$REGISTRY", "make image REGISTRY=$REGISTRY", "image"),
        ("make images REGISTRY=$REGISTRY", "make images REGISTRY=other.example.com", "nobody"),
        ("requests_at_once = 64", "requests_at_one = 64", "requests_at_one"),
        ("--cacert ca.crt -H", "-H", "--cacert belongs"),
    ],
)
def test_a_page_that_is_wrong_fails(desk: Desk, right: str, wrong: str, said: str) -> None:
    assert right in GUIDE
    done = desk.run(on_gpus(GUIDE.replace(right, wrong)), READERS)

    assert done.faults
    assert said in "\n".join(done.faults)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("ci/quickstart-values", "ci/quick-values", "no file"),
        ("--set model.token=", "--set model.tokens=", "tokens"),
        ("redis.password=$(openssl rand -hex 32)", "redis.maxMemory=1gb", "key password"),
        ("image.registry=registry.", "image.registry=another.", "nobody pushed"),
        ("pixtral-12b-2409", "pixtral-12b", "not pixtral-12b"),
        ("docs/pictures/cat.jpg", "docs/pictures/dog.jpg", "dog.jpg"),
        ("/v1/chat/completions", "/v1/chats", "/v1/chats"),
        ("--wait ", "--await ", "--await"),
    ],
)
def test_a_first_answer_that_is_wrong_fails(desk: Desk, right: str, wrong: str, said: str) -> None:
    blocks = blocks_of(FIRST_ANSWER, "# From an empty cluster to the first answer")
    assert right in blocks[0]
    done = desk.run([block.replace(right, wrong) for block in blocks], {})

    assert done.faults
    assert said in "\n".join(done.faults)


def commands_of(block: str) -> list[str]:
    """All up to the last Enter is one command: a pipe, a loop or a here-document."""
    commands, typed = list[str](), ""
    for line in block.splitlines():
        typed += f"{line}\n"
        # Bash complains about what is not complete: by its status, or by a warning.
        checked = subprocess.run(
            ["bash", "-n"], input=typed, capture_output=True, text=True, check=False
        )
        if checked.returncode == 0 and not checked.stderr and not line.endswith("\\"):
            commands += [typed] if typed.strip() else []
            typed = ""
    assert typed == ""
    return commands


def test_the_sums_of_the_table_are_those_of_the_blocks() -> None:
    """`git clone` comes before the block; values are what the reader has to fill in."""
    (block,) = blocks_of(FIRST_ANSWER, "# From an empty cluster to the first answer")
    commands = 1 + len(commands_of(block))
    values = {*re.findall(r"registry\.example\.com|hf_your_token", block)}
    rows = re.findall(
        r"^\| pixtral-serve \| (\d+) \| 0 \| (\d+) \| (\d+) \|", FIRST_ANSWER, re.MULTILINE
    )
    with_token, without = len(values), len(values - {"hf_your_token"})

    assert [tuple(map(int, row)) for row in rows] == [
        (commands, with_token, commands + with_token),
        (commands, without, commands + without),
    ]
    with_tls = 1 + sum(len(commands_of(each)) for each in blocks_of(GUIDE, *ON_GPUS))
    assert f"takes {with_tls} commands, 2 values" in " ".join(FIRST_ANSWER.split())


def test_every_sum_of_the_table_adds_up() -> None:
    rows = re.findall(r"^\| .+? \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", FIRST_ANSWER, re.MULTILINE)

    assert len(rows) == 8
    for *parts, total in rows:
        assert sum(map(int, parts)) == int(total)
