"""Builds each overlay once, with the volume of weights, and finds objects in it."""

import functools
import re

from tools.deploy.manifests import applied
from tools.deploy.objects import Object, name_of, pod_of

build_once = functools.cache(applied)


def get(objects: list[Object], kind: str, name: str) -> Object:
    """An object by kind and name; in the object, a hash may follow the name."""
    named = re.compile(rf"{name}(-[0-9a-z]{{10}})?")
    return next(obj for obj in objects if obj["kind"] == kind and named.fullmatch(name_of(obj)))


def container(workload: Object) -> Object:
    """The first container of a Deployment or Job."""
    found: Object = pod_of(workload)["containers"][0]
    return found
