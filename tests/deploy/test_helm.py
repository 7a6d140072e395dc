"""The Helm chart: its objects fit together, and are the overlays' where they say the same."""

import copy
import re
from typing import Any

import pytest

from tests.support.overlays import build_once
from tools import safe_yaml
from tools.deploy.check import AT_SCALE, EVERYWHERE, OPEN_VALUES, SAFE
from tools.deploy.helm import CHART, ChartError, Templates, render
from tools.deploy.manifests import schema_violations, versions_for, with_component
from tools.deploy.objects import Object, environment, name_of, of_kind, pod_of, tiers
from tools.deploy.rollout import jobs_let_releases_through

VALUES = {path.name.removesuffix("-values.yaml"): path for path in (CHART / "ci").glob("*.yaml")}
LIKE_OVERLAYS = ["external-redis", "gpu", "production"]
HASH = re.compile(r"(settings|weights)-[0-9a-z]{10}")


def rendered(name: str, **more: Any) -> list[Object]:
    values = safe_yaml.load(VALUES[name].read_text()) | more
    return render(values, release="pixtral", namespace="pixtral")


def named(objects: list[Object]) -> dict[tuple[str, str], Object]:
    """Objects by kind and name, without hashes, and with lists of named things in the names'
    order."""
    return {
        (each["kind"], HASH.sub(r"\1", name_of(each))): plain(copy.deepcopy(each))
        for each in objects
    }


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        values = [plain(each) for each in value]
        is_named = all(isinstance(each, dict) and "name" in each for each in values)
        return sorted(values, key=lambda each: str(each["name"])) if is_named else values
    return HASH.sub(r"\1", value) if isinstance(value, str) else value


@pytest.mark.parametrize("overlay", [*LIKE_OVERLAYS, "colocated"])
def test_objects_are_those_of_the_overlay(overlay: str) -> None:
    is_shared = overlay == "colocated"
    built = with_component("gpu", "colocated") if is_shared else build_once(overlay)
    ours, theirs = named(rendered(overlay)), named(built)
    # Helm makes no namespace, keeps the volume itself, and names the Job by what it downloads.
    theirs.pop(("Namespace", "pixtral"))
    ours["PersistentVolumeClaim", "models"]["metadata"].pop("annotations")
    for objects in (ours, theirs):
        for each in objects.values():
            for container in containers(each):
                container["image"] = container["image"].rpartition("/")[2]
    assert ours.keys() == theirs.keys()
    for key, each in theirs.items():
        assert ours[key] == each, key


def containers(obj: Object) -> list[Object]:
    if obj["kind"] not in ("Deployment", "Job"):
        return []
    return [*pod_of(obj).get("initContainers", ()), *pod_of(obj)["containers"]]


@pytest.mark.parametrize("name", VALUES)
def test_objects_fit_together(name: str) -> None:
    objects = rendered(name)
    claims: list[Object] = [{"kind": "PersistentVolumeClaim", "metadata": {"name": "models"}}]
    rules = EVERYWHERE if name in OPEN_VALUES else (*EVERYWHERE, *SAFE)
    if name in ("external-redis", "production"):
        rules = (*rules, AT_SCALE)
    for rule in rules:
        assert list(rule([*objects, *claims])) == []
    for each in objects:
        versions = versions_for(each)
        for version in (versions[0], versions[-1]):
            assert list(schema_violations(each, version)) == []


def test_values_reach_the_objects() -> None:
    objects = rendered("cloud", writableRoot=True)
    found = {
        name_of(deployment): (deployment, container) for deployment, container in tiers(objects)
    }
    decoder, container = found["decoder"]
    told = environment(objects, container)

    assert told["PIXTRAL_MODEL"] == "mistral-small-3.2"
    assert told["PIXTRAL_TENSOR_PARALLEL"] == "2"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert container["securityContext"]["readOnlyRootFilesystem"] is False
    assert pod_of(decoder)["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-a100-80gb"
    }
    assert pod_of(decoder)["imagePullSecrets"] == [{"name": "registry"}]
    assert decoder["spec"]["template"]["metadata"]["labels"][
        "inference.networking.k8s.io/engine-type"
    ] == ("vllm")
    (claim,) = of_kind(objects, "PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == "filestore"
    certificates = {name_of(each): each["spec"] for each in of_kind(objects, "Certificate")}
    assert certificates["gateway"]["dnsNames"] == ["gateway", "localhost", "pixtral.example.com"]
    assert {*certificates} == {"gateway", "encoder", "decoder", "redis"}


def test_another_namespace_and_release_are_in_queries_and_selectors() -> None:
    values = safe_yaml.load(VALUES["production"].read_text())
    objects = render(values, release="second", namespace="other")

    assert [fault for rule in EVERYWHERE for fault in rule(objects)] == []
    for service in of_kind(objects, "Service"):
        assert service["spec"]["selector"]["app.kubernetes.io/instance"] == "second"


def test_a_token_and_a_password_make_the_secrets_that_the_pods_read() -> None:
    objects = rendered("quickstart", model={"token": "hf_1"}, redis={"password": "p1"})
    secrets = {name_of(each): each["stringData"] for each in of_kind(objects, "Secret")}
    (job,) = of_kind(objects, "Job")
    read = {
        (source["name"], source["key"])
        for each in objects
        for container in containers(each)
        for variable in container.get("env", ())
        for source in [variable.get("valueFrom", {}).get("secretKeyRef")]
        if source
    }

    for each in of_kind(objects, "Secret"):
        assert list(schema_violations(each, versions_for(each)[-1])) == []
    assert secrets == {"huggingface": {"token": "hf_1"}, "redis": {"password": "p1"}}
    assert read == {("huggingface", "token"), ("redis", "password")}
    assert any(variable["name"] == "HF_TOKEN" for variable in containers(job)[0]["env"])


@pytest.mark.parametrize("name", VALUES)
def test_without_them_no_secret_is_made(name: str) -> None:
    assert of_kind(rendered(name), "Secret") == []


def test_alerts_link_to_the_runbook_of_the_values() -> None:
    monitoring = {"enabled": True, "runbookUrl": "https://wiki.example.org/runbook"}
    (rules,) = of_kind(rendered("production", monitoring=monitoring), "PrometheusRule")
    alerts = [
        rule for group in rules["spec"]["groups"] for rule in group["rules"] if "alert" in rule
    ]

    assert {
        rule["annotations"]["runbook_url"]
        == f"https://wiki.example.org/runbook#{rule['alert'].lower()}"
        for rule in alerts
    } == {True}


def test_an_upgrade_makes_another_job_and_changes_none() -> None:
    (before,) = of_kind(rendered("gpu"), "Job")
    (after,) = of_kind(rendered("gpu", image={"tag": "0.2.0"}), "Job")

    assert name_of(before) != name_of(after)
    # The rule is for manifests whose Job keeps its name.
    assert list(jobs_let_releases_through(rendered("gpu")))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gateway": {"replica": 2}}, "replica"),
        ({"settings": {"pixtral_model": "a"}}, "pixtral_model"),
        ({"decoder": {"gpus": -1}}, "gpus"),
        ({"redis": {"maxMemory": "12 GB"}}, "maxMemory"),
        ({"redis": {"password": "a/b"}}, "password"),
        ({"tls": {"source": "cert-manager"}}, "tls.issuer.name is the Issuer"),
        ({"gatewayApi": {"enabled": True}}, "gatewayApi.parent.name is the Gateway"),
        ({"ingress": {"enabled": True}}, "ingress.host is the name"),
    ],
)
def test_values_that_cannot_be_are_refused_by_their_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ChartError, match=said):
        render(values, release="pixtral", namespace="pixtral")


def test_every_value_is_described() -> None:
    page = (CHART / "README.md").read_text("utf-8")
    values = safe_yaml.load((CHART / "values.yaml").read_text("utf-8"))
    for name, value in values.items():
        below = value if isinstance(value, dict) and name != "settings" else {"": None}
        for key in below:
            assert f"`{name}{'.' if key else ''}{key}`" in page, (name, key)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a {{ .x }} b", "a 1 b"),
        ("a\n  {{- if eq .x 1 }}\n  b\n  {{- else }}\n  c\n  {{- end }}\n", "a\n  b\n"),
        ("{{ range $k, $v := .m }}{{ $k }}={{ $v | quote }};{{ end }}", 'a="1";b="true";'),
        ("{{ range .l }}{{ . }}{{ end }}{{ range .none }}{{ else }}none{{ end }}", "12none"),
        ("{{ with .m }}{{ .a }}{{ end }}{{ with .none }}{{ else }}-{{ end }}", "1-"),
        ('{{ define "t" }}<{{ . }}>{{ end }}{{ include "t" (printf "%s!" .s) }}', "<s!>"),
        ("{{ $y := .none | default 3 }}{{ if not $y }}a{{ else if gt $y 2 }}b{{ end }}", "b"),
        ("{{- /* no */ -}} x: {{ toYaml .m | nindent 2 }}", "x: \n  a: 1\n  b: true"),
    ],
)
def test_templates_are_read_as_gos(template: str, text: str) -> None:
    dot = {"x": 1, "s": "s", "l": [1, 2], "m": {"a": 1, "b": True}}
    templates = Templates()
    assert templates.run(templates.read(template), dot, {"$": dot}) == text


@pytest.mark.parametrize("template", ["{{ unknown 1 }}", "{{ .x ; }}", "{{ $z }}", "{{ end }}"])
def test_what_the_renderer_does_not_know_is_an_error(template: str) -> None:
    templates = Templates()
    with pytest.raises(ChartError):
        templates.run(templates.read(template), {"x": 1}, {})
