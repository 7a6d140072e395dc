"""The versions of vLLM that were tried with the decoder, and whether the installed one works.

    python -m pixtral_decoder.vllm_hooks.supported

prints it as a line of JSON, which `pixtral-serve doctor` reads.
"""

import importlib
import json
import logging
import sys
from typing import Any

from pixtral_core.hooks import HookBroken

logger = logging.getLogger(__name__)

TRIED = {
    "0.25.1": "CUDA",
    "0.32.0": "CPU, in CI, and CUDA",
    "0.33.0": "CUDA",
}
"""For each tried version of vLLM, the devices of the trial.

On CUDA the trial was `tests.decoder.on_gpu`, and on a CPU all tests.
"""

HOOKS = (
    "config_parser",
    "continuation",
    "cpu_seeds",
    "engine_shutdown",
    "exit_with_parent",
    "grammar_vocabulary",
    "image_cache",
    "image_fan_out",
    "last_characters",
    "mask_time",
    "model",
    "one_line_json",
    "refusals",
    "scheduler",
    "start_failure",
    "structure_check",
    "tensor_handover",
    "thinking_grammar",
)
# These hooks only have an effect on a CPU. Their check imports vLLM's model runner, which takes
# seconds.
CPU_HOOKS = ("cpu_seeds",)


def installed() -> str:
    """The version of vLLM. Imports vLLM, which takes seconds."""
    import vllm

    return str(vllm.__version__).partition("+")[0]


def doubt(version: str) -> str | None:
    """A warning about an untried version, or None.

    An untried version may work, because each hook checks what it uses.
    """
    if version in TRIED:
        return None
    return f"vLLM {version} was not tried with this decoder: {', '.join(TRIED)} were"


def check() -> None:
    """Raises HookBroken if a hook does not fit this vLLM, and warns of an untried version.

    Imports most of vLLM, which takes seconds.
    """
    for name in _hooks_here():
        check_hook(name)
    if warning := doubt(installed()):
        logger.warning(warning)


def check_hook(name: str) -> None:
    """Raises HookBroken if vLLM lacks something that the hook uses."""
    module = f"{__package__}.{name}"
    try:
        hook: Any = importlib.import_module(module)
    except (ImportError, AttributeError) as error:
        raise HookBroken(
            f"the hook {module} does not load with this vLLM ({error}): install one of "
            f"{', '.join(TRIED)}, or mend the hook as docs/hooks.md says"
        ) from error
    hook.check_upstream()


def _hooks_here() -> tuple[str, ...]:
    from vllm.platforms import current_platform

    is_cpu = current_platform.is_cpu()
    return tuple(name for name in HOOKS if is_cpu or name not in CPU_HOOKS)


def main() -> None:
    version = installed()
    broken: list[str] = []
    for name in _hooks_here():
        try:
            check_hook(name)
        except HookBroken as error:
            broken.append(str(error))
    found = {"version": version, "warning": doubt(version), "broken": broken}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
