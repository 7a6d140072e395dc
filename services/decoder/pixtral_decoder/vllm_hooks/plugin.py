"""The vLLM plug-in: makes the decoder's model known to every process of a vLLM engine.

vLLM finds `register` through the entry point group `vllm.general_plugins`. It calls `register` in
the process that starts an engine, and again in the engine's own processes.
"""

import multiprocessing
import os
from importlib.metadata import entry_points

from pixtral_core.server import garbage
from pixtral_decoder.vllm_hooks import (
    exit_with_parent,
    grammar_vocabulary,
    mask_time,
    one_line_json,
    start_failure,
    tensor_handover,
    thinking_grammar,
)

ARCHITECTURE = "PixtralEmbeddingsForConditionalGeneration"
# The class for checkpoints in Hugging Face's format.
HF_ARCHITECTURE = "HuggingFacePixtralEmbeddingsForConditionalGeneration"
CONFIG_FORMAT = "pixtral-params"


def register() -> None:
    """Registers the model classes and how to read their config. A second call changes nothing."""
    from vllm import ModelRegistry

    from pixtral_decoder.vllm_hooks import config_parser

    if ARCHITECTURE in ModelRegistry.get_supported_archs():
        return
    # With a name instead of a class, vLLM imports the class only when it builds the model, after a
    # worker has chosen its device.
    for name in (ARCHITECTURE, HF_ARCHITECTURE):
        ModelRegistry.register_model(name, f"pixtral_decoder.vllm_hooks.model:{name}")
    # Every vLLM in the same environment loads the plug-in, even one that no decoder has started.
    is_decoders = exit_with_parent.is_owned()
    config_parser.register(CONFIG_FORMAT, is_decoders=is_decoders)
    if is_decoders:
        grammar_vocabulary.spell_in_bytes()
        one_line_json.compile_marked()
        grammar_vocabulary.compile_json_apart()
        mask_time.measure()
        thinking_grammar.let_think()
        if multiprocessing.parent_process() is not None:
            garbage.search_as_usual()
            exit_with_parent.end_with_parent()
            start_failure.record()
            tensor_handover.receive()


def is_installed() -> bool:
    """Whether vLLM's processes will find `register`."""
    allowed = os.environ.get("VLLM_PLUGINS")
    return any(
        entry.value == f"{__name__}:{register.__name__}"
        and (allowed is None or entry.name in allowed.split(","))
        for entry in entry_points(group="vllm.general_plugins")
    )
