"""The vLLM plug-in: makes the decoder's model known to every process of a vLLM engine.

vLLM finds `register` through the entry point group `vllm.general_plugins` and calls it in the
process that starts an engine and again in the engine's own.
"""

import multiprocessing
import os
import threading
from importlib.metadata import entry_points
from multiprocessing.connection import wait

ARCHITECTURE = "PixtralEmbeddingsForConditionalGeneration"
CONFIG_FORMAT = "pixtral-params"
# Set by the decoder for its engine's processes alone: the plug-in is loaded by every vLLM that
# runs in the same environment.
OWNED_BY_DECODER = "PIXTRAL_ENGINE_OF_DECODER"


def register() -> None:
    """Registers the model class and how to read its config. Calling it again changes nothing."""
    from vllm import ModelRegistry
    from vllm.transformers_utils.config import register_config_parser

    from services.decoder.config_parser import ParamsParser

    if ARCHITECTURE in ModelRegistry.get_supported_archs():
        return
    # By name: the class is imported only where the model is built, and never before a worker has
    # chosen its device.
    ModelRegistry.register_model(ARCHITECTURE, f"services.decoder.model:{ARCHITECTURE}")
    register_config_parser(CONFIG_FORMAT)(ParamsParser)
    if os.environ.get(OWNED_BY_DECODER):
        # What loads the tokenizer detects the format for itself, and would read with vLLM's own.
        register_config_parser("mistral")(ParamsParser)
        _end_with_parent()


def is_installed() -> bool:
    """Whether vLLM's processes will find `register`."""
    allowed = os.environ.get("VLLM_PLUGINS")
    return any(
        entry.value == f"{__name__}:{register.__name__}"
        and (allowed is None or entry.name in allowed.split(","))
        for entry in entry_points(group="vllm.general_plugins")
    )


def _end_with_parent() -> None:
    # vLLM's engine process outlives a parent that was killed, with its memory and its device.
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
