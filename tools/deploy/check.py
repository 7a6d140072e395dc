"""Checks the Kubernetes manifests without a cluster: `python -m tools.deploy.check [DIR]`.

Every overlay must build, every object pass the strict schemas of every Kubernetes version from 1.30
on, and the objects of an overlay fit together. The built objects are written to DIR, for a scanner.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import yaml

from tools.deploy.fit import (
    budgets_protect,
    devices_are_given,
    drains_end,
    gpus_are_given,
    probes_probe,
    references_exist,
    scalers_scale,
    selectors_select,
    tiers_are_found_by_name,
    tiers_scale,
)
from tools.deploy.manifests import OVERLAYS, build, builder, kubernetes_versions, schema_violations
from tools.deploy.objects import Object, Rule
from tools.deploy.safety import (
    callers_are_known,
    network_is_closed,
    pods_are_confined,
    redis_is_a_bounded_cache,
    secrets_are_references,
    traffic_is_encrypted,
)

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
)
SAFE: tuple[Rule, ...] = (
    secrets_are_references,
    traffic_is_encrypted,
    callers_are_known,
    gpus_are_given,
)
AT_SCALE: Rule = partial(tiers_scale, kinds=("ScaledObject", "PodDisruptionBudget", "PodMonitor"))

RULES: dict[str, tuple[Rule, ...]] = {
    "dev": EVERYWHERE,
    "gpu": (*EVERYWHERE, *SAFE),
    "production": (*EVERYWHERE, *SAFE, AT_SCALE),
    "external-redis": (*EVERYWHERE, *SAFE, AT_SCALE),
}


def main(directory: Path | None) -> int:
    versions = kubernetes_versions()
    problems, seen = 0, dict[str, Object]()
    for overlay in OVERLAYS:
        try:
            objects = build(overlay)
        except subprocess.CalledProcessError as error:
            sys.exit(f"{overlay} does not build: {error.stderr.strip()}")
        for rule in RULES[overlay]:
            for problem in rule(objects):
                print(f"{overlay}: {problem}")
                problems += 1
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{overlay}.yaml").write_text(yaml.safe_dump_all(objects), "utf-8")
        seen |= {json.dumps(obj, sort_keys=True): obj for obj in objects}
        print(f"{overlay}: {len(objects)} objects, {len(RULES[overlay])} rules")
    for obj in seen.values():
        for version in versions:
            for problem in schema_violations(obj, version):
                print(problem)
                problems += 1
    print(
        f"{len(seen)} different objects against the schemas of Kubernetes {versions[0]} to "
        f"{versions[-1]}, built by {' '.join(builder())}: {problems} problems"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else None))
