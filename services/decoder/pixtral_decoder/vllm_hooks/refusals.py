"""Distinguishes a sampling parameter that vLLM refuses from a failure of vLLM.

Library: vLLM
Changes: nothing; it names the exceptions by which vLLM refuses a parameter.
Why: SamplingParams checks its values only when it is made. Up to vLLM 0.26 it refuses with a
    ValueError, and from 0.27 on mostly with VLLMClientError, which is not a ValueError.
Upstream: none known
Versions: vLLM 0.25.1 to 0.33.0
"""

from vllm import exceptions
from vllm.sampling_params import SamplingParams

from pixtral_core.hooks import HookBroken, Touch, broken, check_touches

TOUCHES = (Touch("vllm.exceptions", "VLLMValidationError"),)

REFUSALS: tuple[type[Exception], ...] = (
    ValueError,
    # vLLM up to 0.26 does not have this class, and its `VLLMValidationError` is a ValueError.
    getattr(exceptions, "VLLMClientError", ValueError),
)
"""The exceptions by which SamplingParams and the check of a structured output refuse a value."""


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed, or refuses a parameter in another way."""
    check_touches(__name__, TOUCHES)
    try:
        SamplingParams(top_p=-1.0)
    except REFUSALS as error:
        if refused_parameter(error) == "top_p":
            return
        raise HookBroken(broken(__name__, "refuses top_p without naming it")) from error
    except Exception as error:
        raise HookBroken(broken(__name__, f"refuses by {type(error).__name__}")) from error


def refused_parameter(error: Exception) -> str | None:
    """The name of the parameter that vLLM refuses, or None if the exception does not have it."""
    name = getattr(error, "parameter", None)
    return name if isinstance(name, str) else None
