"""The overlays, each built once, with the volume of weights, and how to find an object in them."""

import functools
import re

from tools.deploy.manifests import applied
from tools.deploy.objects import Object, name_of, pod_of

build_once = functools.cache(applied)


def get(objects: list[Object], kind: str, name: str) -> Object:
    """An object by its kind and its name, which may have a hash at its end."""
    named = re.compile(rf"{name}(-[0-9a-z]{{10}})?")
    return next(obj for obj in objects if obj["kind"] == kind and named.fullmatch(name_of(obj)))


def container(workload: Object) -> Object:
    """The first container of a Deployment or Job."""
    found: Object = pod_of(workload)["containers"][0]
    return found
