"""Checks the Kubernetes manifests without a cluster: `python -m tools.deploy.check [DIR]`.

Every overlay must build, every object must pass the strict schemas of every Kubernetes version from
1.30 on, and the objects of an overlay must fit together. DIR receives the built objects, for a
scanner.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml

from tools import safe_yaml
from tools.deploy.door import (
    balancers_are_internal,
    names_are_fixed,
    names_resolve,
    ports_say_their_protocol,
    selectors_name_the_instance,
)
from tools.deploy.fit import (
    budgets_protect,
    devices_are_given,
    drains_end,
    gpus_are_given,
    one_card_is_shared,
    probes_probe,
    references_exist,
    scalers_scale,
    selectors_select,
    tiers_are_found_by_name,
    tiers_scale,
)
from tools.deploy.guide import PAGE, commands_can_be_typed
from tools.deploy.helm import CHART, render
from tools.deploy.images import (
    bytecode_is_kept,
    command_line_needs_no_extra,
    compose,
    dockerfiles,
    locks,
    locks_fit_every_python,
    nothing_writable_is_imported,
    programs_are_the_environments,
    programs_import_what_is_there,
    temporary_folders_execute,
)
from tools.deploy.manifests import (
    OVERLAYS,
    applied,
    build,
    builder,
    kubernetes_versions,
    schema_violations,
    versions_for,
    with_component,
)
from tools.deploy.objects import Object, Rule
from tools.deploy.rollout import (
    certificates_can_change,
    compiled_kernels_are_kept,
    gpus_have_memory,
    host_memory_fits,
    jobs_let_releases_through,
    nodes_hold_the_pods,
    nothing_is_pulled,
    probes_prove_an_answer,
    rollouts_have_time,
    roots_can_be_written,
    settings_start_new_pods,
    surges_need_no_gpu,
    weights_are_chosen,
)
from tools.deploy.safety import (
    callers_are_known,
    network_is_closed,
    pods_are_confined,
    redis_is_a_bounded_cache,
    secrets_are_references,
    traffic_is_encrypted,
)
from tools.deploy.watching import (
    alerts_keep_the_namespace,
    monitors_are_selected,
    queries_name_their_namespace,
    rules_and_dashboards_are_there,
)
from tools.expressions import RULES as ALERTS

EVERYWHERE: tuple[Rule, ...] = (
    selectors_select,
    tiers_are_found_by_name,
    budgets_protect,
    scalers_scale,
    drains_end,
    probes_probe,
    pods_are_confined,
    references_exist,
    network_is_closed,
    redis_is_a_bounded_cache,
    devices_are_given,
    rollouts_have_time,
    surges_need_no_gpu,
    settings_start_new_pods,
    nodes_hold_the_pods,
    weights_are_chosen,
    probes_prove_an_answer,
    certificates_can_change,
    names_resolve,
    names_are_fixed,
    ports_say_their_protocol,
    balancers_are_internal,
    selectors_name_the_instance,
    queries_name_their_namespace,
    monitors_are_selected,
    rules_and_dashboards_are_there,
    partial(programs_are_the_environments, files=dockerfiles()),
    programs_import_what_is_there,
)
SAFE: tuple[Rule, ...] = (
    secrets_are_references,
    traffic_is_encrypted,
    callers_are_known,
    gpus_are_given,
)
AT_SCALE: Rule = partial(tiers_scale, kinds=("ScaledObject", "PodDisruptionBudget", "PodMonitor"))

RULES: dict[str, tuple[Rule, ...]] = {
    "dev": (*EVERYWHERE, nothing_is_pulled),
    "gpu": (*EVERYWHERE, *SAFE),
    "production": (*EVERYWHERE, *SAFE, AT_SCALE),
    "external-redis": (*EVERYWHERE, *SAFE, AT_SCALE),
}
# Files of values without TLS and keys, which skip the rules of SAFE.
OPEN_VALUES = frozenset({"laptop", "quickstart"})
# Components that no overlay uses, and the rules that each must pass.
OPTIONAL: dict[str, tuple[Rule, ...]] = {
    "colocated": (one_card_is_shared, devices_are_given, gpus_are_given, surges_need_no_gpu),
    "compile-cache": (compiled_kernels_are_kept,),
    "image-urls": (settings_start_new_pods, network_is_closed),
    "kv-host": (host_memory_fits,),
    "nodes": (gpus_have_memory,),
    "openshift": (network_is_closed,),
    "traces": (settings_start_new_pods, network_is_closed),
    "writable-root": (roots_can_be_written,),
}

# The overlay for each component that does not go with `production`.
OPTIONAL_OVERLAYS = {"colocated": "gpu"}


def faults_of_overlays() -> Iterator[str]:
    """The faults of each overlay, of its weights, and of overlays with an optional component."""
    for overlay in OVERLAYS:
        objects = applied(overlay)
        for rule in RULES[overlay]:
            yield from (f"{overlay}: {fault}" for fault in rule(objects))
        yield from (f"{overlay}: {fault}" for fault in jobs_let_releases_through(build(overlay)))
    for component, rules in OPTIONAL.items():
        overlay = OPTIONAL_OVERLAYS.get(component, "production")
        objects = with_component(overlay, component)
        for rule in rules:
            yield from (f"{overlay} with {component}: {fault}" for fault in rule(objects))


def faults_of_chart() -> Iterator[str]:
    """The faults of the Helm chart with each of its files of values."""
    volume: Object = {"kind": "PersistentVolumeClaim", "metadata": {"name": "models"}}
    for path in sorted((CHART / "ci").glob("*.yaml")):
        values = safe_yaml.load(path.read_text("utf-8"))
        objects = render(values, release="pixtral", namespace="pixtral")
        is_open = path.stem.removesuffix("-values") in OPEN_VALUES
        for rule in EVERYWHERE if is_open else (*EVERYWHERE, *SAFE):
            yield from (f"{path.name}: {fault}" for fault in rule([*objects, volume]))


def faults_beside_overlays() -> Iterator[str]:
    """The faults of images, the compose file, locks, alerts, and the deployment page."""
    files = dockerfiles()
    yield from nothing_writable_is_imported(files)
    yield from bytecode_is_kept(files)
    yield from temporary_folders_execute(compose()["services"])
    yield from command_line_needs_no_extra()
    yield from locks_fit_every_python(locks())
    yield from alerts_keep_the_namespace(safe_yaml.load(ALERTS.read_text("utf-8"))["groups"])
    yield from commands_can_be_typed(PAGE.read_text("utf-8"))


def main(directory: Path | None) -> int:
    versions = kubernetes_versions()
    seen = dict[str, Object]()
    for overlay in OVERLAYS:
        try:
            objects = applied(overlay)
        except subprocess.CalledProcessError as error:
            sys.exit(f"{overlay} does not build: {error.stderr.strip()}")
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{overlay}.yaml").write_text(yaml.safe_dump_all(objects), "utf-8")
        seen |= {json.dumps(obj, sort_keys=True): obj for obj in objects}
        print(f"{overlay}: {len(objects)} objects, {len(RULES[overlay]) + 1} rules")
    for path in sorted((CHART / "ci").glob("*.yaml")):
        values = safe_yaml.load(path.read_text("utf-8"))
        objects = render(values, release="pixtral", namespace="pixtral")
        if directory is not None:
            (directory / f"helm-{path.stem}.yaml").write_text(yaml.safe_dump_all(objects), "utf-8")
        seen |= {json.dumps(obj, sort_keys=True): obj for obj in objects}
    faults = [
        *faults_of_overlays(),
        *faults_of_chart(),
        *faults_beside_overlays(),
        *(
            f
            for obj in seen.values()
            for version in versions_for(obj)
            for f in schema_violations(obj, version)
        ),
    ]
    print("\n".join(faults), end="\n" if faults else "")
    print(
        f"{len(seen)} different objects against the schemas of Kubernetes {versions[0]} to "
        f"{versions[-1]}, built by {' '.join(builder())}: {len(faults)} problems"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else None))
