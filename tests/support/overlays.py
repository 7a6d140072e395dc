"""The overlays, each built once."""

import functools

from tools.deploy.manifests import build

build_once = functools.cache(build)
