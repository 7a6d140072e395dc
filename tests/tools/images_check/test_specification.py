"""From a container to the OCI runtime's config.json."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tools.images_check.containers import Container, Mount
from tools.images_check.specification import (
    Image,
    Surroundings,
    command,
    seccomp,
    specification,
)

IMAGE = Image(
    Path("/roots/one"),
    {
        "Entrypoint": ["python3", "-m", "pixtral_decoder"],
        "Cmd": ["--flag"],
        "Env": ["PATH=/opt/pixtral/bin:/bin", "HOME=/tmp"],
        "WorkingDir": "/tmp",
        "User": "10001:10001",
    },
)
GIVEN = Surroundings(
    network=Path("/run/netns/decoder"),
    hosts=Path("/node/hosts"),
    cgroup="/images-check-decoder",
    seccomp={"defaultAction": "SCMP_ACT_ERRNO"},
    init=Path("/usr/bin/tini-static"),
    folders={("secret", "tls"): Path("/node/tls"), ("claim", "models"): Path("/node/models")},
)
CONFINED = Container(
    "decoder",
    "pixtral-decoder:0.1.0",
    read_only=True,
    new_privileges=False,
    memory=2**30,
    cores=0.5,
)


def mounts(said: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["destination"]: each for each in said["mounts"]}


def test_a_confined_container() -> None:
    said = specification(CONFINED, IMAGE, GIVEN)
    process, linux = said["process"], said["linux"]

    assert said["root"] == {"path": "/roots/one", "readonly": True}
    assert process["args"] == ["python3", "-m", "pixtral_decoder", "--flag"]
    assert process["cwd"] == "/tmp"
    assert process["user"] == {"uid": 10001, "gid": 10001, "additionalGids": []}
    assert process["capabilities"] == {"bounding": [], "effective": [], "permitted": []}
    assert process["noNewPrivileges"] is True
    assert linux["resources"] == {
        "memory": {"limit": 2**30},
        "cpu": {"quota": 50_000, "period": 100_000},
    }
    assert linux["seccomp"] == GIVEN.seccomp
    assert {"type": "network", "path": "/run/netns/decoder"} in linux["namespaces"]


def test_a_container_that_drops_nothing_keeps_the_usual_capabilities() -> None:
    open_one = replace(CONFINED, keeps_capabilities=True, new_privileges=True, is_confined=False)
    said = specification(open_one, IMAGE, GIVEN)

    assert "CAP_CHOWN" in said["process"]["capabilities"]["bounding"]
    assert said["process"]["noNewPrivileges"] is False
    assert "seccomp" not in said["linux"]


def test_the_containers_own_settings_come_before_the_images() -> None:
    own = replace(CONFINED, user=(10002, 10003), groups=(7,), environment={"HOME": "/data"})
    process = specification(own, IMAGE, GIVEN)["process"]

    assert process["user"] == {"uid": 10002, "gid": 10003, "additionalGids": [7]}
    assert process["env"] == ["PATH=/opt/pixtral/bin:/bin", "HOME=/data"]


@pytest.mark.parametrize(
    ("entry", "arguments", "words"),
    [
        (None, None, ["python3", "-m", "pixtral_decoder", "--flag"]),
        (("sh",), None, ["sh"]),
        (None, ("--other",), ["python3", "-m", "pixtral_decoder", "--other"]),
        (("sh", "-c"), ("true",), ["sh", "-c", "true"]),
    ],
)
def test_programs_and_arguments_join_as_in_kubernetes(
    entry: tuple[str, ...] | None, arguments: tuple[str, ...] | None, words: list[str]
) -> None:
    assert command(replace(CONFINED, entry=entry, arguments=arguments), IMAGE) == words


def test_no_program_is_an_error() -> None:
    with pytest.raises(ValueError, match="names no program"):
        command(CONFINED, Image(Path("/"), {}))


def test_a_user_by_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="is no number"):
        specification(CONFINED, Image(Path("/"), {"User": "nobody", "Cmd": ["true"]}), GIVEN)


def test_volumes() -> None:
    own = replace(
        CONFINED,
        mounts=(
            Mount("/tls", "secret", "tls", read_only=True),
            Mount("/models", "claim", "models"),
            Mount("/dev/shm", "memory", "shm", options=("nosuid",), size=5),
        ),
    )
    found = mounts(specification(own, IMAGE, GIVEN))

    assert found["/tls"]["source"] == "/node/tls"
    assert "ro" in found["/tls"]["options"]
    assert "rw" in found["/models"]["options"]
    assert found["/dev/shm"]["options"] == ["nosuid", "size=5"]
    assert found["/etc/hosts"]["source"] == "/node/hosts"


def test_shared_memory_is_docker_s_unless_the_container_mounts_its_own() -> None:
    assert (
        f"size={64 * 2**20}" in mounts(specification(CONFINED, IMAGE, GIVEN))["/dev/shm"]["options"]
    )


def test_an_init_program_is_the_first_process() -> None:
    said = specification(replace(CONFINED, has_init=True), IMAGE, GIVEN)

    assert said["process"]["args"][:2] == ["/sbin/docker-init", "--"]
    assert mounts(said)["/sbin/docker-init"]["source"] == "/usr/bin/tini-static"
    with pytest.raises(ValueError, match="wants an init program"):
        specification(replace(CONFINED, has_init=True), IMAGE, replace(GIVEN, init=None))


def test_the_profile_of_system_calls_without_capabilities() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {}},
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},
            {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_BPF"]}},
            {
                "names": ["arch_prctl"],
                "action": "SCMP_ACT_ALLOW",
                "includes": {"arches": ["amd64"]},
            },
            {"names": ["riscv"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["riscv64"]}},
        ],
    }

    assert seccomp(profile, "amd64", ()) == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["bpf"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW"},
        ],
    }
