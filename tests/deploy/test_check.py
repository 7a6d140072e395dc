"""Each deliberate mistake must be found, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.overlays import build_once, container, get
from tools.deploy.check import RULES
from tools.deploy.manifests import OVERLAYS, applied, kubernetes_versions, schema_violations
from tools.deploy.objects import Object, containers_of, name_of, pod_of

Spoil = Callable[[dict[str, Any]], object]


def problems(overlay: str, objects: list[Object]) -> list[str]:
    return [problem for rule in RULES[overlay] for problem in rule(objects)]


def set_variable(deployment: Object, name: str, value: str) -> None:
    next(v for v in container(deployment)["env"] if v["name"] == name)["value"] = value


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_fits_together(overlay: str) -> None:
    assert problems(overlay, build_once(overlay)) == []


@pytest.mark.parametrize("version", kubernetes_versions()[:: len(kubernetes_versions()) - 1])
def test_every_kind_passes_the_oldest_and_the_newest_schemas(version: str) -> None:
    for obj in (*build_once("production"), *build_once("dev")):
        assert list(schema_violations(obj, version)) == []


def test_schemas_are_those_of_1_30_and_all_later_ones() -> None:
    versions = kubernetes_versions()
    assert versions[0] == "1.30"
    assert len(versions) >= 8


@pytest.mark.parametrize(
    ("kind", "name", "spoil", "said"),
    [
        # A wrong field in every kind of object, its schema's part.
        ("Namespace", "pixtral", lambda o: o.update(spec={"finaliser": []}), "finaliser"),
        ("ServiceAccount", "gateway", lambda o: o.update(automount=False), "automount"),
        ("ConfigMap", "settings", lambda o: o["data"].update(PORT=1), "data.PORT"),
        ("Deployment", "gateway", lambda o: o["spec"].update(replica=2), "replica"),
        ("Deployment", "encoder", lambda o: container(o).update(livenes={}), "livenes"),
        (
            "Deployment",
            "decoder",
            lambda o: container(o)["startupProbe"].update(grpc={"port": "health"}),
            "startupProbe.grpc.port",
        ),
        ("Service", "gateway", lambda o: o["spec"].update(clusterIp="None"), "clusterIp"),
        ("PersistentVolumeClaim", "models", lambda o: o["spec"].update(size="1Gi"), "size"),
        ("Job", "weights", lambda o: o["spec"].update(retries=1), "retries"),
        ("NetworkPolicy", "redis", lambda o: o["spec"].update(ingres=[]), "ingres"),
        ("PodDisruptionBudget", "gateway", lambda o: o["spec"].update(min=1), "min"),
        ("ScaledObject", "encoder", lambda o: o["spec"].update(minReplicas=1), "minReplicas"),
        (
            "ScaledObject",
            "decoder",
            lambda o: o["spec"]["triggers"][0]["metadata"].update(threshold=4),
            "threshold",
        ),
        ("PodMonitor", "gateway", lambda o: o["spec"].update(endpoints=[]), "endpoints"),
    ],
)
def test_schema_finds_a_mistake(
    production: list[Object], kind: str, name: str, spoil: Spoil, said: str
) -> None:
    obj = get(production, kind, name)
    assert list(schema_violations(obj, "1.30")) == []
    spoil(obj)

    for version in (kubernetes_versions()[0], kubernetes_versions()[-1]):
        (violation,) = schema_violations(obj, version)
        assert f"{kind}/{name_of(obj)}" in violation
        assert said in violation


def without(key: str) -> Callable[[Object], object]:
    return lambda spec: spec.pop(key)


@pytest.mark.parametrize(
    ("kind", "name", "spoil", "said"),
    [
        (
            "Service",
            "encoder",
            lambda o: o["spec"].update(selector={"app.kubernetes.io/name": "encode"}),
            "Service encoder selects 0 Deployments",
        ),
        (
            "Service",
            "decoder",
            lambda o: o["spec"]["ports"][0].update(targetPort="http"),
            "Service decoder: its pods have no port http",
        ),
        ("Service", "encoder", lambda o: o["spec"].pop("clusterIP"), "encoder is not headless"),
        (
            "Deployment",
            "gateway",
            lambda o: set_variable(o, "PIXTRAL_ENCODERS", "dns:///encoder:50053"),
            "PIXTRAL_ENCODERS dns:///encoder:50053 is not a Service's name",
        ),
        (
            "Deployment",
            "gateway",
            lambda o: set_variable(o, "PIXTRAL_DECODERS", "decoder:50053"),
            "PIXTRAL_DECODERS decoder:50053 is not a Service's name",
        ),
        (
            "Deployment",
            "encoder",
            lambda o: set_variable(o, "PIXTRAL_LISTEN", "127.0.0.1:50052"),
            "PIXTRAL_LISTEN is not port grpc",
        ),
        (
            "Deployment",
            "gateway",
            lambda o: o["spec"]["template"]["metadata"].update(labels={"a": "b"}),
            "Deployment gateway does not select its own pods",
        ),
        (
            "PodDisruptionBudget",
            "decoder",
            lambda o: o["spec"].update(selector={"matchLabels": {"app": "decoder"}}),
            "PodDisruptionBudget decoder selects 0 Deployments",
        ),
        (
            "PodDisruptionBudget",
            "decoder",
            lambda o: o["spec"].update(maxUnavailable=2),
            "lets all 2 pods be evicted",
        ),
        (
            "PodDisruptionBudget",
            "gateway",
            lambda o: o["spec"].update(maxUnavailable=0),
            "lets no pod of 2 be evicted",
        ),
        (
            "ScaledObject",
            "gateway",
            lambda o: o["spec"].update(minReplicaCount=1),
            "PodDisruptionBudget gateway lets all 1 pods be evicted",
        ),
        (
            "ScaledObject",
            "encoder",
            lambda o: o["spec"]["scaleTargetRef"].update(name="encoders"),
            "ScaledObject encoder scales a Deployment that does not exist",
        ),
        (
            "ScaledObject",
            "encoder",
            lambda o: o["spec"].update(maxReplicaCount=2),
            "ScaledObject encoder: 2 to 2 replicas",
        ),
        ("Deployment", "encoder", lambda o: o["spec"].update(replicas=3), "sets replicas too"),
        (
            "ConfigMap",
            "settings",
            lambda o: o["data"].update(PIXTRAL_DRAIN_SECONDS="200"),
            "a drain of 200 s interrupts a request of 300 s",
        ),
        (
            "Deployment",
            "decoder",
            lambda o: pod_of(o).update(terminationGracePeriodSeconds=320),
            "Deployment decoder is killed 320 s after SIGTERM",
        ),
        (
            "Deployment",
            "decoder",
            lambda o: container(o).pop("lifecycle"),
            "preStop ends before callers",
        ),
        (
            "Deployment",
            "decoder",
            lambda o: container(o)["startupProbe"].update(failureThreshold=30),
            "Deployment decoder has 150 s to load",
        ),
        (
            "Deployment",
            "gateway",
            lambda o: container(o)["livenessProbe"].update(grpc={"port": 50051}),
            "livenessProbe is not gRPC health",
        ),
        (
            "Deployment",
            "gateway",
            lambda o: next(p for p in container(o)["ports"] if p["name"] == "http").update(
                containerPort=8080
            ),
            "Deployment gateway: PIXTRAL_HTTP_LISTEN is not port http",
        ),
        (
            "NetworkPolicy",
            "gateway",
            lambda o: o["spec"]["ingress"][0]["ports"].pop(),
            "NetworkPolicy: gateway refuses connections from outside",
        ),
        (
            "Deployment",
            "encoder",
            lambda o: pod_of(o)["securityContext"].pop("runAsNonRoot"),
            "Deployment encoder may run as root",
        ),
        (
            "Deployment",
            "encoder",
            lambda o: pod_of(o)["securityContext"].pop("seccompProfile"),
            "no seccomp profile",
        ),
        (
            "Job",
            "weights",
            lambda o: containers_of(o)[0]["securityContext"].pop("readOnlyRootFilesystem"),
            "Job weights: weights can write to its root",
        ),
        (
            "Deployment",
            "redis",
            lambda o: container(o)["securityContext"].pop("capabilities"),
            "redis keeps capabilities",
        ),
        (
            "ServiceAccount",
            "gateway",
            lambda o: o.pop("automountServiceAccountToken"),
            "Deployment gateway has a token",
        ),
        (
            "Deployment",
            "gateway",
            lambda o: container(o)["resources"].pop("limits"),
            "gateway has no limits",
        ),
        (
            "PersistentVolumeClaim",
            "models",
            lambda o: o["metadata"].update(name="model"),
            "there is no PersistentVolumeClaim models",
        ),
        (
            "ConfigMap",
            "settings",
            lambda o: o["metadata"].update(name="setting"),
            "there is no ConfigMap settings-",
        ),
        (
            "Deployment",
            "gateway",
            lambda o: container(o)["env"].reverse(),
            "PIXTRAL_REDIS_URL uses REDIS_PASSWORD, which is not defined before it",
        ),
        (
            "Deployment",
            "gateway",
            lambda o: container(o)["env"].append({"name": "REDIS_PASSWORD", "value": "x"}),
            "gateway: REDIS_PASSWORD has a literal value",
        ),
        (
            "Deployment",
            "decoder",
            lambda o: container(o)["env"].append(
                {"name": "PIXTRAL_ALLOW_INSECURE", "value": "true"}
            ),
            "allows unencrypted traffic",
        ),
        (
            "Deployment",
            "encoder",
            lambda o: set_variable(o, "PIXTRAL_TLS_CLIENT_CA", ""),
            "Deployment encoder accepts every caller",
        ),
        (
            "Deployment",
            "gateway",
            lambda o: set_variable(o, "PIXTRAL_API_KEYS", ""),
            "Deployment gateway answers every caller",
        ),
        (
            "NetworkPolicy",
            "closed",
            lambda o: o["spec"].update(policyTypes=["Ingress"]),
            "no NetworkPolicy denies all traffic by default",
        ),
        (
            "NetworkPolicy",
            "redis",
            lambda o: o["spec"]["ingress"][0].pop("from"),
            "redis accepts connections from outside",
        ),
        (
            "NetworkPolicy",
            "redis",
            lambda o: o["spec"]["ingress"][0]["from"][0].update(podSelector={}),
            "redis accepts connections from weights",
        ),
        (
            "NetworkPolicy",
            "encoder",
            lambda o: o["spec"]["ingress"][0]["from"][0].update(
                podSelector={"matchLabels": {"app.kubernetes.io/name": "gateway"}}
            ),
            "encoder refuses connections from decoder",
        ),
        (
            "NetworkPolicy",
            "gateway",
            lambda o: o["spec"]["egress"].pop(0),
            "gateway cannot connect to encoder",
        ),
        (
            "Deployment",
            "redis",
            lambda o: container(o)["args"].__setitem__(2, "hunter2"),
            "redis has no password from a Secret",
        ),
        (
            "Deployment",
            "redis",
            lambda o: container(o)["args"].__setitem__(4, "20gb"),
            "redis has no maxmemory within",
        ),
        (
            "Deployment",
            "redis",
            lambda o: container(o)["args"].__setitem__(6, "noeviction"),
            "redis refuses writes when it is full",
        ),
        (
            "Deployment",
            "decoder",
            lambda o: container(o)["resources"]["limits"].pop("nvidia.com/gpu"),
            "Deployment decoder has no GPU",
        ),
        (
            "Deployment",
            "decoder",
            lambda o: container(o)["env"].append({"name": "PIXTRAL_TENSOR_PARALLEL", "value": "2"}),
            "Deployment decoder has 1 GPUs, but needs 2",
        ),
        (
            "Deployment",
            "decoder",
            lambda o: container(o)["volumeMounts"].pop(),
            "Deployment decoder has only the runtime's 64 MiB of shared memory",
        ),
        (
            "PodMonitor",
            "encoder",
            lambda o: o["spec"]["podMetricsEndpoints"][0].update(port="http"),
            "PodMonitor encoder finds no pod with port http",
        ),
        (
            "PodMonitor",
            "encoder",
            lambda o: o["metadata"].update(name="other"),
            "encoder: no PodMonitor",
        ),
    ],
)
def test_rule_finds_a_mistake(
    production: list[Object], kind: str, name: str, spoil: Spoil, said: str
) -> None:
    spoil(get(production, kind, name))

    assert any(said in problem for problem in problems("production", production))


def test_secret_in_the_manifests_is_found(production: list[Object]) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "redis"}}

    assert "Secret redis is part of the manifests" in problems("production", [*production, secret])


def test_kind_without_a_schema_is_found() -> None:
    unknown = {"apiVersion": "v1", "kind": "Deplyoment", "metadata": {"name": "a"}}

    (violation,) = schema_violations(unknown, "1.30")

    assert "Deplyoment" in violation


def test_build_is_the_same_each_time() -> None:
    assert applied("gpu") == build_once("gpu")
