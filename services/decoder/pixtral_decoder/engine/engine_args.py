"""vLLM's engine arguments, by version and device."""

import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pixtral_core.model.checkpoint import read_language
from pixtral_core.model.hugging_face import is_hugging_face
from pixtral_decoder.engine.compute_dtype import imitates_bfloat16
from pixtral_decoder.vllm_hooks import exit_with_parent
from pixtral_decoder.vllm_hooks.plugin import ARCHITECTURE, CONFIG_FORMAT, HF_ARCHITECTURE

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

logger = logging.getLogger(__name__)

GIB = 1 << 30
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - looked at, not written to
SCHEDULER = "pixtral_decoder.vllm_hooks.scheduler.scheduler"
CHUNK_SETTING = "chunked_prefill_size"
# vLLM takes this many tokens in a step by default, or more on a large GPU.
LEAST_STEP_TOKENS = 2048

# vLLM's arguments that the decoder does not pass on, and the settings that replace them. The
# decoder's plug-in, checks and metrics depend on the other ones.
OWNED: Mapping[str, str] = {
    "config_format": "",
    "disable_log_stats": "",
    "dtype": "dtype",
    "enable_mm_embeds": "",
    "gpu_memory_utilization": "gpu_memory_fraction",
    "hf_config_path": "",
    "hf_overrides": "",
    "kv_cache_memory_bytes": "kv_cache_bytes",
    "kv_offloading_size": "kv_host_bytes",
    "limit_mm_per_prompt": "max_images",
    "max_model_len": "context_length",
    "max_num_seqs": "max_running",
    "mm_processor_cache_gb": "engine_cache_bytes",
    "model": "model_dir",
    "served_model_name": "model",
    "skip_mm_profiling": "",
    "skip_tokenizer_init": "",
    "structured_outputs_config": "",
    "tensor_parallel_size": "tensor_parallel",
    "tokenizer": "",
    "tokenizer_mode": "",
}
# vLLM's arguments about fetching and reading images, which the gateway and the encoder do here.
_OF_IMAGE_FILES = frozenset(
    {"allowed_local_media_path", "allowed_media_domains", "media_io_kwargs"}
)


class BadEngineArguments(ValueError):
    """An argument that the decoder does not pass on to vLLM; the message says which."""


def check_owned(names: Iterable[str]) -> None:
    """Raises BadEngineArguments if an argument of vLLM is the decoder's own to set."""
    for name in names:
        if setting := OWNED.get(name):
            raise BadEngineArguments(f"{name} is set by {setting}")
        if name in OWNED:
            raise BadEngineArguments(f"{name} must not be set: the decoder needs its own value")
        if name in _OF_IMAGE_FILES:
            raise BadEngineArguments(f"{name} has no effect: the decoder reads no image files")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The arguments with which the engine starts.

    Attributes:
        model_dir: a checkpoint in Mistral format, or in Hugging Face's.
        dtype: dtype of the language model's weights and activations; "auto" for the checkpoint's.
        may_widen: whether to use float32 in place of bfloat16 on a CPU that only imitates it.
        context_length: the most tokens of a prompt and its answer together, if the model supports
            as many.
        max_running: the most requests that run at once; others wait. None for vLLM's own number for
            the device.
        chunked_prefill_size: the most tokens of a step while answers wait for their next token;
            None for the scheduler's own number.
        max_images: the most images in one prompt.
        image_cache_bytes: size of the engine's cache of image embeddings.
        kv_cache_bytes: memory for keys and values; None for all that the GPU has left.
        kv_host_bytes: host memory for keys and values that do not fit on the GPU; 0 for none. It
            has no effect on a CPU.
        gpu_memory_fraction: share of the GPU's memory for weights, activations, keys and values.
        tensor_parallel: number of GPUs that share the model.
        cpu_threads: compute threads on a CPU; None leaves one core free.
        adapters: directories of LoRA adapters by name.
        more: vLLM's own arguments, by their names in AsyncEngineArgs.
    """

    model_dir: Path
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    may_widen: bool = False
    context_length: int = 32768
    max_running: int | None = None
    chunked_prefill_size: int | None = None
    max_images: int = 32
    image_cache_bytes: int = GIB
    kv_cache_bytes: int | None = None
    kv_host_bytes: int = 0
    gpu_memory_fraction: float = 0.9
    tensor_parallel: int = 1
    cpu_threads: int | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def prepare_process() -> None:
    """Sets the environment variables of vLLM and its processes; call it before vLLM's import."""
    exit_with_parent.own()
    # Forking a process that serves gRPC copies locks in whatever state they are.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    # A model is a directory, so vLLM never contacts a model hub or a statistics server.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # Under CUDA's MPS, where an encoder is on the same GPU: its kernels first. The deltas wait
    # here, and are small beside a prompt.
    os.environ.setdefault("CUDA_MPS_CLIENT_PRIORITY", "1")
    # With this variable, which tracing has read by now, vLLM's processes would send traces of their
    # own start.
    os.environ.pop("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", None)
    # vLLM gives its loggers a level and a handler when an engine starts. Until then, and where they
    # write to this process's log, they have the same level by this.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())


def engine_args(options: EngineOptions, tokenizer_dir: Path | None = None) -> "AsyncEngineArgs":
    """vLLM's arguments. Imports vLLM, which takes seconds.

    `tokenizer_dir` has only the tokenizer's file; None for the model's own directory.

    Raises BadEngineArguments for a name that vLLM does not have, and where the machine has less
    shared memory than `kv_host_bytes`.
    """
    from vllm.config import StructuredOutputsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    is_theirs = is_hugging_face(options.model_dir)
    arguments: dict[str, Any] = {
        "model": str(options.model_dir),
        "tokenizer": str(tokenizer_dir or options.model_dir),
        "tokenizer_mode": "mistral",
        "config_format": CONFIG_FORMAT,
        "load_format": "safetensors" if is_theirs else "mistral",
        "hf_overrides": {"architectures": [HF_ARCHITECTURE if is_theirs else ARCHITECTURE]},
        "dtype": options.dtype,
        "max_model_len": _context_length(options),
        "max_num_seqs": options.max_running,
        "limit_mm_per_prompt": {"image": options.max_images},
        "mm_processor_cache_gb": options.image_cache_bytes / GIB,
        # There is no tower to profile; the adapter needs less than the language model's own run.
        "skip_mm_profiling": True,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        # Answers that are being written wait for a step to end, and so for as much of a new prompt
        # as it takes in. A name, not a class: the engine's own process imports it.
        "scheduler_cls": SCHEDULER,
        "max_num_batched_tokens": _step_tokens(options),
        "kv_cache_memory_bytes": options.kv_cache_bytes,
        "gpu_memory_utilization": options.gpu_memory_fraction,
        "tensor_parallel_size": options.tensor_parallel,
        # vLLM's default reads a request's schema with one library, and compiles all of them with
        # the library that came first, which ignores what it does not know. This one refuses it.
        "structured_outputs_config": StructuredOutputsConfig(backend="xgrammar"),
        # They are its Prometheus metrics, too.
        "disable_log_stats": False,
        "enable_log_requests": False,
        "use_tqdm_on_load": False,
    }
    if options.adapters:
        # vLLM's default lets requests for one adapter wait until those for another have ended.
        arguments |= {"enable_lora": True, "max_loras": len(options.adapters)}
    if current_platform.is_cpu():
        _prepare_cpu(options)
        if _is_widened(options):
            logger.info(
                "the language model computes in float32 and takes twice the memory, because this "
                "CPU multiplies float32 much faster than bfloat16; compute_dtype overrules this"
            )
            arguments["dtype"] = "float32"
        arguments |= {
            "distributed_executor_backend": "uni" if options.tensor_parallel == 1 else "mp",
            # Compiling takes longer than it saves within minutes of serving.
            "enforce_eager": True,
            # A prompt's tail within a block is computed anew. vLLM's 128 here costs a repeated
            # image 60 more tokens of attention over all of it; its kernels take multiples of 32.
            "block_size": 32,
            "kv_cache_memory_bytes": options.kv_cache_bytes or GIB,
        }
        if options.adapters:
            arguments["max_loras"] += 1
            _check_spare_slot(options)
    elif options.kv_host_bytes:
        _check_shared_memory(options.kv_host_bytes)
        # Whole tokens of keys and values leave the GPU and come back: answers stay the same.
        arguments["kv_offloading_size"] = options.kv_host_bytes / GIB
    if options.kv_host_bytes and current_platform.is_cpu():
        logger.info("kv_host_bytes has no effect: a CPU's keys and values are in its memory")
    more = dict(options.more)
    if (size := options.chunked_prefill_size) is not None:
        # vLLM gives it to the engine's process, where the scheduler reads it.
        more["additional_config"] = {**more.get("additional_config", {}), CHUNK_SETTING: size}
    names = {field.name for field in fields(AsyncEngineArgs)}
    if unknown := sorted(more.keys() - names):
        raise BadEngineArguments(f"this vLLM has no argument {unknown[0]}")
    # vLLM compares it with its own number before it looks at its type.
    if not isinstance(more.get("max_num_batched_tokens", 1), int):
        raise BadEngineArguments("max_num_batched_tokens is not a whole number")
    return AsyncEngineArgs(**arguments | more)


def _check_shared_memory(needed: int) -> None:
    # vLLM has it there, and looks only once the model is loaded.
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise BadEngineArguments(
            f"kv_host_bytes is {needed / GIB:.1f} GiB, and {SHARED_MEMORY} has {free / GIB:.1f}: "
            "make it larger (docker run --shm-size, or the sizeLimit of an emptyDir of medium "
            "Memory), or set less"
        )


def _step_tokens(options: EngineOptions) -> int | None:
    # vLLM refuses fewer than one for each request, and would not choose more for their sake.
    most = options.max_running
    return most if most is not None and most > LEAST_STEP_TOKENS else None


def _check_spare_slot(options: EngineOptions) -> None:
    # vLLM 0.32's CPU kernels apply the last slot's adapter to requests for none where others of
    # the same step have one. Slots fill from the first on: one that is never filled is harmless.
    if options.more.get("max_loras", len(options.adapters) + 1) <= len(options.adapters):
        raise BadEngineArguments("max_loras must be above the number of adapters on a CPU")


def _context_length(options: EngineOptions) -> int:
    models = read_language(options.model_dir).context_length
    return options.context_length if models is None else min(options.context_length, models)


def _is_widened(options: EngineOptions) -> bool:
    if not options.may_widen or options.dtype != "bfloat16":
        return False
    # vLLM's quantized products take 16 bits alone.
    is_quantized = "quantization" in options.more or read_language(options.model_dir).is_quantized
    return not is_quantized and imitates_bfloat16()


def _prepare_cpu(options: EngineOptions) -> None:
    # With this at 1, the CPU build runs the model in one more process behind the engine's: 10 s
    # of start-up and a copy of each step's input for a single worker. AsyncLLM gives the engine a
    # process of its own whatever this says.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # OpenMP threads wait for each other by spinning: with as many of them as cores, whatever else
    # runs on the machine stalls them all, tenfold and more.
    cores = sorted(os.sched_getaffinity(0))
    threads = options.cpu_threads or max(1, len(cores) - 1)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if (parts := options.tensor_parallel) > 1:
        # vLLM's default gives each part of the model a NUMA node of its own.
        shares = (cores[part::parts] or cores for part in range(parts))
        bound = "|".join(",".join(map(str, share)) for share in shares)
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", bound)
