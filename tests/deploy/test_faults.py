"""Each fault that running the manifests once showed, planted: its rule finds it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.overlays import build_once, container, get
from tools import safe_yaml
from tools.deploy import guide, images
from tools.deploy.check import OPTIONAL, RULES, faults_beside_overlays
from tools.deploy.fit import one_card_is_shared
from tools.deploy.images import WITHOUT_CLI, compose, dockerfiles, locks
from tools.deploy.manifests import build, with_component
from tools.deploy.objects import containers_of, pod_of
from tools.deploy.rollout import jobs_let_releases_through
from tools.deploy.watching import alerts_keep_the_namespace
from tools.expressions import RULES as ALERTS

Plant = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("overlay", "kind", "name", "plant", "said"),
    [
        # The numbers are those of the list of faults, and stand in the ids.
        pytest.param(
            "dev",
            "Deployment",
            "encoder",
            lambda o: containers_of(o)[0].update(imagePullPolicy="Always"),
            "Deployment encoder: weights pulls its image, which no registry has",
            id="1 an image that is only loaded is pulled",
        ),
        pytest.param(
            "production",
            "Deployment",
            "decoder",
            lambda o: o["spec"].pop("progressDeadlineSeconds"),
            "Deployment decoder counts as failed after 600 s",
            id="5 a rollout fails while it downloads",
        ),
        pytest.param(
            "production",
            "ScaledObject",
            "decoder",
            lambda o: o["spec"]["triggers"][0]["metadata"].update(
                query='sum(vllm:num_requests_running{namespace="pixtral"})'
                " + sum(vllm:num_requests_waiting)"
            ),
            "ScaledObject decoder: vllm:num_requests_waiting counts all namespaces",
            id="6 a tier scales by another's load",
        ),
        pytest.param(
            "production",
            "ScaledObject",
            "gateway",
            lambda o: o["metadata"].update(namespace="other"),
            "ScaledObject gateway: pixtral_gateway_permits_in_use counts all namespaces",
            id="6 an overlay has another namespace than its queries",
        ),
        pytest.param(
            "production",
            "Deployment",
            "encoder",
            lambda o: o["spec"]["strategy"]["rollingUpdate"].update(maxSurge=1),
            "Deployment encoder needs another GPU for each upgrade",
            id="7 an upgrade needs a GPU that is not there",
        ),
        pytest.param(
            "production",
            "NetworkPolicy",
            "names",
            lambda o: o["spec"]["egress"][0]["to"].pop(),
            "NetworkPolicy names: no pod may ask the resolver 169.254.169.254/32",
            id="11 pods have no DNS",
        ),
        pytest.param(
            "production",
            "Deployment",
            "gateway",
            lambda o: container(o)["envFrom"][0]["configMapRef"].update(name="settings"),
            "Deployment gateway: a change of the ConfigMap settings starts no new pods",
            id="12 changed settings do nothing",
        ),
        pytest.param(
            "production",
            "Deployment",
            "encoder",
            lambda o: next(
                m for m in container(o)["volumeMounts"] if m["mountPath"] == "/tls"
            ).update(subPath="tls.crt"),
            "Deployment encoder: /tls does not change when its Secret does",
            id="13 a certificate that is replaced never reaches the pod",
        ),
        pytest.param(
            "production",
            "PodMonitor",
            "encoder",
            lambda o: o["metadata"]["labels"].pop("release"),
            "PodMonitor encoder has no label `release`",
            id="14 nobody scrapes",
        ),
        pytest.param(
            "production",
            "PrometheusRule",
            "pixtral",
            lambda o: o["spec"]["groups"].pop(),
            "no PrometheusRule has the rules",
            id="14 nobody alerts",
        ),
        pytest.param(
            "production",
            "ConfigMap",
            "dashboard-fleet",
            lambda o: o["metadata"]["labels"].clear(),
            "no ConfigMap has the dashboard fleet.json",
            id="14 nobody sees a dashboard",
        ),
        pytest.param(
            "production",
            "Deployment",
            "encoder",
            lambda o: container(o)["resources"]["requests"].update(cpu="4"),
            "Deployment encoder asks for 4 cores and 12 GiB",
            id="15 a pod fits no GPU node of four cores",
        ),
        pytest.param(
            "production",
            "ConfigMap",
            "weights",
            lambda o: o["data"].pop("REVISION"),
            "Job weights does not let users choose REVISION",
            id="16 the weights are others on another day",
        ),
        pytest.param(
            "production",
            "Job",
            "weights",
            lambda o: o["spec"].pop("ttlSecondsAfterFinished"),
            "Job weights remains after its end",
            id="16 a Job that ended cannot be applied again",
        ),
        pytest.param(
            "production",
            "Service",
            "pixtral",
            lambda o: o["metadata"].pop("annotations"),
            "Service pixtral is open to the internet",
            id="18 a balancer is public",
        ),
        pytest.param(
            "production",
            "Deployment",
            "gateway",
            lambda o: container(o)["lifecycle"]["preStop"]["sleep"].update(seconds=15),
            "Deployment gateway stops 15 s after it becomes not ready, before the health checks",
            id="18 a pod stops before its balancer knows",
        ),
        pytest.param(
            "production",
            "Service",
            "encoder",
            lambda o: o["spec"]["ports"][0].pop("appProtocol"),
            "Service encoder: port grpc has no appProtocol",
            id="18 a port does not say its protocol",
        ),
        pytest.param(
            "production",
            "Service",
            "gateway",
            lambda o: o["spec"]["ports"][1].update(appProtocol="http"),
            "Service gateway: port http is not http",
            id="18 a port with TLS says that it has none",
        ),
        pytest.param(
            "production",
            "PodDisruptionBudget",
            "decoder",
            lambda o: o["spec"]["selector"]["matchLabels"].pop("app.kubernetes.io/instance"),
            "PodDisruptionBudget decoder selects the pods of every installation",
            id="19 two installations select each other's pods",
        ),
        pytest.param(
            "production",
            "Service",
            "decoder",
            lambda o: o["metadata"].update(name="my-decoder"),
            "there is no Service decoder: a prefix or suffix",
            id="19 a prefix breaks the names",
        ),
        pytest.param(
            "production",
            "Deployment",
            "redis",
            lambda o: container(o)["readinessProbe"]["exec"]["command"].remove("-e"),
            "Deployment redis: readinessProbe does not prove an answer",
            id="20 a probe takes a refusal for an answer",
        ),
    ],
)
def test_a_fault_of_an_overlay_is_found(
    overlay: str, kind: str, name: str, plant: Plant, said: str
) -> None:
    objects = copy.deepcopy(build_once(overlay))
    plant(get(objects, kind, name))

    found = [fault for rule in RULES[overlay] for fault in rule(objects)]
    assert any(said in fault for fault in found), found


def test_3_a_release_with_a_job_that_no_upgrade_can_change_is_found() -> None:
    objects = copy.deepcopy(build("dev"))
    assert not list(jobs_let_releases_through(objects))

    get(objects, "Job", "weights")["spec"].pop("ttlSecondsAfterFinished")

    (fault,) = jobs_let_releases_through(objects)
    assert "Job weights has an image of the release" in fault


def test_2_a_python_without_the_project_is_found() -> None:
    files = dockerfiles()
    files["encoder"] = files["encoder"].replace("ENV PATH=/opt/pixtral/bin:$PATH ", "ENV ")

    (fault,) = images.programs_are_the_environments(build_once("dev"), files)

    assert "Job weights: python is not from /opt/pixtral" in fault


def test_2_a_program_that_imports_what_no_image_has_is_found() -> None:
    objects = copy.deepcopy(build_once("dev"))
    command = container(get(objects, "Job", "weights"))["command"]
    command[2] = command[2].replace("from random_checkpoint", "from models.random_checkpoint")

    (fault,) = images.programs_import_what_is_there(objects)

    assert fault == "Job weights: no image has the folder models"


def test_4_a_folder_without_the_right_to_execute_is_found() -> None:
    services = compose()["services"]
    services["encoder"]["tmpfs"] = ["/tmp"]  # noqa: S108 - a container's

    (fault,) = images.temporary_folders_execute(services)

    assert fault == "compose: encoder cannot execute what it compiles into /tmp"


def test_8_a_command_line_that_needs_more_than_a_tier_has_is_found() -> None:
    code = WITHOUT_CLI.replace('"rich", ', '"pixtral_client", ')

    (fault,) = images.command_line_needs_no_extra(code)

    assert "pixtral-serve key needs more than a tier's image has" in fault


def test_9_a_lock_without_what_the_oldest_python_needs_is_found() -> None:
    changed = locks()
    changed["gateway.txt"] = changed["gateway.txt"].replace("async-timeout==", "other==")

    (fault,) = images.locks_fit_every_python(changed)

    assert "requirements/gateway.txt lacks async-timeout" in fault


@pytest.mark.parametrize(
    ("component", "said"),
    [
        # 10 and 15
        ("writable-root", "Deployment encoder has a read-only root"),
        ("nodes", "Deployment decoder takes any GPU"),
        ("kv-host", "Deployment decoder has no host memory for keys and values"),
        ("compile-cache", "Deployment decoder loses VLLM_CACHE_ROOT with its pod"),
    ],
)
def test_a_component_that_does_not_do_what_it_is_for_is_found(component: str, said: str) -> None:
    objects = with_component("production", component)
    (rule,) = OPTIONAL[component]
    assert not list(rule(objects))

    faults = list(rule(build_once("production")))

    assert any(said in fault for fault in faults)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (
            lambda o: next(
                e for e in container(o)["env"] if e["name"] == "TRITON_CACHE_DIR"
            ).update(value="/elsewhere"),
            "Deployment encoder loses TRITON_CACHE_DIR with its pod",
        ),
        (
            lambda o: container(o)["volumeMounts"][-1].update(readOnly=True),
            "Deployment encoder loses TORCHINDUCTOR_CACHE_DIR with its pod",
        ),
    ],
)
def test_kernels_that_end_with_their_pod_are_found(plant: Plant, said: str) -> None:
    objects = copy.deepcopy(with_component("production", "compile-cache"))
    deployment = get(objects, "Deployment", "encoder")
    mounts = container(deployment)["volumeMounts"]
    mounts.sort(key=lambda mount: mount["name"] == "compile-cache")
    plant(deployment)
    (rule,) = OPTIONAL["compile-cache"]
    assert said in next(iter(rule(objects)))


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (
            lambda o: next(v for v in pod_of(o)["volumes"] if v["name"] == "shm").update(
                emptyDir={"medium": "Memory", "sizeLimit": "8Gi"}
            ),
            "has too little shared memory for 64 GiB",
        ),
        (
            lambda o: container(o)["resources"]["requests"].update(memory="24Gi"),
            "uses 64 GiB, but requests 24",
        ),
    ],
)
def test_host_memory_that_a_pod_does_not_have_is_found(plant: Plant, said: str) -> None:
    objects = copy.deepcopy(with_component("production", "kv-host"))
    plant(get(objects, "Deployment", "decoder"))
    (rule,) = OPTIONAL["kv-host"]
    (fault,) = rule(objects)
    assert said in fault


@pytest.mark.parametrize(
    ("kind", "plant", "said"),
    [
        (
            "decoder",
            lambda o: pod_of(o).pop("resourceClaims"),
            "does not use the only",
        ),
        (
            "encoder",
            lambda o: pod_of(o)["resourceClaims"][0].update(resourceClaimName="another"),
            "does not use the only",
        ),
        ("decoder", lambda o: o["spec"].update(replicas=2), "several replicas on one card"),
        (
            "encoder",
            lambda o: container(o)["resources"]["limits"].update({"nvidia.com/gpu": 1}),
            "has another GPU beside the shared one",
        ),
        (
            "decoder",
            lambda o: next(
                each
                for each in container(o)["env"]
                if each["name"] == "PIXTRAL_GPU_MEMORY_FRACTION"
            ).update(value="0.9"),
            "leaves the encoder no memory",
        ),
    ],
)
def test_a_card_that_two_cannot_share_is_found(kind: str, plant: Plant, said: str) -> None:
    objects = copy.deepcopy(with_component("gpu", "colocated"))
    assert list(one_card_is_shared(objects)) == []
    plant(get(objects, "Deployment", kind))
    (fault,) = one_card_is_shared(objects)
    assert said in fault


def test_14_an_alert_that_adds_up_all_namespaces_is_found() -> None:
    groups = safe_yaml.load(ALERTS.read_text("utf-8"))["groups"]
    rule = next(r for g in groups for r in g["rules"] if r.get("alert") == "PixtralReplicaEjected")
    rule["expr"] = rule["expr"].replace("by (namespace, tier)", "by (tier)")

    (fault,) = alerts_keep_the_namespace(groups)

    assert fault == "PixtralReplicaEjected: sum adds up all namespaces"


@pytest.mark.parametrize(
    ("typed", "instead", "said"),
    [
        (
            "kubectl rollout status ",
            "echo ",
            "a port is forwarded before its pod runs",
        ),
        (
            "kubectl apply -f deploy/k8s/base/namespace.yaml",
            "kubectl create namespace pixtral",
            "kubectl warns when it applies a namespace",
        ),
        ('-H "Authorization: Bearer $PIXTRAL_API_KEY" ', "", "a gateway with keys refuses: curl"),
        ("sed -i ", "kustomize edit set image ", "kubectl does not include kustomize"),
        ("--build-arg VLLM_IMAGE=", "--build-arg VLLM_IMAGE=... # ", "has dots in place of"),
    ],
)
def test_17_a_command_that_does_not_work_as_it_is_typed_is_found(
    typed: str, instead: str, said: str
) -> None:
    text = guide.PAGE.read_text("utf-8")
    assert typed in text

    faults = list(guide.commands_can_be_typed(text.replace(typed, instead)))

    assert any(said in fault for fault in faults)


@pytest.mark.parametrize(
    ("rule", "line", "said"),
    [
        (images.bytecode_is_kept, "RUN python3 -m compileall", "compiles its Python at each start"),
        (images.nothing_writable_is_imported, "PYTHONSAFEPATH=1 ", "imports from the directory"),
    ],
    ids=["21", "22"],
)
def test_an_image_that_starts_slowly_or_imports_what_it_wrote_is_found(
    rule: Callable[[dict[str, str]], Any], line: str, said: str
) -> None:
    files = dockerfiles()
    assert not list(rule(files))
    files["decoder"] = files["decoder"].replace(line, "")

    (fault,) = rule(files)

    assert fault.startswith("the image of the decoder")
    assert said in fault


def test_nothing_beside_the_overlays_is_amiss() -> None:
    assert list(faults_beside_overlays()) == []
