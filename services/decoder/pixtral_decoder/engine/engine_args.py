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
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - only read for its size
SCHEDULER = "pixtral_decoder.vllm_hooks.scheduler.scheduler"
CHUNK_SETTING = "chunked_prefill_size"
# vLLM's default limit is this many tokens in a step, or more on a large GPU.
LEAST_STEP_TOKENS = 2048

# vLLM's arguments that users cannot set in `engine_args`, and the decoder's settings for them. An
# argument with an empty text has no setting, because the decoder's plug-in, checks or metrics
# depend on its value.
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
    """Raises BadEngineArguments if the decoder itself sets one of these arguments of vLLM."""
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
        dtype: dtype of the language model's weights and activations; "auto" is the checkpoint's
            own dtype.
        may_widen: whether to use float32 in place of bfloat16 on a CPU that only emulates bfloat16.
        context_length: the most tokens of a prompt and its answer together. If the model supports
            fewer, the model's limit applies.
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
    """Sets the environment variables of vLLM and its processes.

    Call it before vLLM's import, and before gRPC has threads: they read the environment without
    Python's lock, and a variable that is added meanwhile can make them crash.
    """
    exit_with_parent.own()
    # A fork of a process that serves gRPC would copy locks that other threads own at that moment,
    # and nothing would release the copies.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    # The model is a local directory, so vLLM needs no model hub. It also sends no usage statistics.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # If an encoder shares the GPU under CUDA's MPS, this lower priority lets the encoder's kernels
    # go first.
    os.environ.setdefault("CUDA_MPS_CLIENT_PRIORITY", "1")
    # vLLM sets the level and the handler of its loggers when an engine starts. This line sets the
    # same level until then, and for those loggers of vLLM that write to this process's log.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())


def engine_args(options: EngineOptions, tokenizer_dir: Path | None = None) -> "AsyncEngineArgs":
    """vLLM's arguments. Imports vLLM, which takes seconds.

    `tokenizer_dir` is a directory that contains only the tokenizer's file. None means that the
    tokenizer is in the model's directory.

    Raises BadEngineArguments for a name that vLLM does not have, and if the machine has less shared
    memory than `kv_host_bytes`.
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
        # The decoder has no vision tower to profile, and the adapter needs less memory than the
        # language model, which vLLM profiles anyway.
        "skip_mm_profiling": True,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        # An answer waits for each step to end, and a step takes longer with more tokens of new
        # prompts. This scheduler limits them. The value is a name, not a class, because the
        # engine's own process imports the class.
        "scheduler_cls": SCHEDULER,
        "max_num_batched_tokens": _step_tokens(options),
        "kv_cache_memory_bytes": options.kv_cache_bytes,
        "gpu_memory_utilization": options.gpu_memory_fraction,
        "tensor_parallel_size": options.tensor_parallel,
        # With vLLM's default, each request chooses a library to read its schema, but the library
        # of the first request compiles all schemas, and ignores keywords that it does not know.
        # With xgrammar as the only library, vLLM refuses such keywords.
        "structured_outputs_config": StructuredOutputsConfig(backend="xgrammar"),
        # The same argument would switch off vLLM's Prometheus metrics.
        "disable_log_stats": False,
        "enable_log_requests": False,
        "use_tqdm_on_load": False,
    }
    if options.adapters:
        # vLLM has one slot for adapters by default: the requests for one adapter would wait until
        # those for another have ended.
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
            # Compiling takes longer than it saves in the first minutes of serving.
            "enforce_eager": True,
            # The prefix cache contains whole blocks, so the engine computes the last, partial block
            # of a repeated prompt anew. vLLM's default of 128 on a CPU means more such tokens. Its
            # CPU kernels take multiples of 32.
            "block_size": 32,
            "kv_cache_memory_bytes": options.kv_cache_bytes or GIB,
        }
        if options.adapters:
            arguments["max_loras"] += 1
            _check_spare_slot(options)
    elif options.kv_host_bytes:
        _check_shared_memory(options.kv_host_bytes)
        # vLLM moves keys and values to the host and back without a change of their values, so
        # answers stay the same.
        arguments["kv_offloading_size"] = options.kv_host_bytes / GIB
    if options.kv_host_bytes and current_platform.is_cpu():
        logger.info("kv_host_bytes has no effect: a CPU's keys and values are in its memory")
    more = dict(options.more)
    if (size := options.chunked_prefill_size) is not None:
        # vLLM passes additional_config to the engine's process, where the scheduler reads it.
        more["additional_config"] = {**more.get("additional_config", {}), CHUNK_SETTING: size}
    names = {field.name for field in fields(AsyncEngineArgs)}
    if unknown := sorted(more.keys() - names):
        raise BadEngineArguments(f"this vLLM has no argument {unknown[0]}")
    # vLLM compares this value with a number before it checks the type of the value.
    if not isinstance(more.get("max_num_batched_tokens", 1), int):
        raise BadEngineArguments("max_num_batched_tokens is not a whole number")
    return AsyncEngineArgs(**arguments | more)


def _check_shared_memory(needed: int) -> None:
    # vLLM allocates kv_host_bytes in shared memory, and checks the size only after it has loaded
    # the model.
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise BadEngineArguments(
            f"kv_host_bytes is {needed / GIB:.1f} GiB, and {SHARED_MEMORY} has {free / GIB:.1f}: "
            "make it larger (docker run --shm-size, or the sizeLimit of an emptyDir of medium "
            "Memory), or set less"
        )


def _step_tokens(options: EngineOptions) -> int | None:
    # vLLM refuses a step with fewer tokens than requests, and its default does not grow with the
    # number of requests.
    most = options.max_running
    return most if most is not None and most > LEAST_STEP_TOKENS else None


def _check_spare_slot(options: EngineOptions) -> None:
    # If some requests of a step have an adapter, the CPU kernels of vLLM 0.32 apply the adapter in
    # the last slot to the requests without an adapter. Slots fill from the first on, so that with
    # one slot more than adapters the last slot stays empty, and has no effect.
    if options.more.get("max_loras", len(options.adapters) + 1) <= len(options.adapters):
        raise BadEngineArguments("max_loras must be above the number of adapters on a CPU")


def _context_length(options: EngineOptions) -> int:
    models = read_language(options.model_dir).context_length
    return options.context_length if models is None else min(options.context_length, models)


def _is_widened(options: EngineOptions) -> bool:
    if not options.may_widen or options.dtype != "bfloat16":
        return False
    # vLLM's quantized products take activations of 16 bits only.
    is_quantized = "quantization" in options.more or read_language(options.model_dir).is_quantized
    return not is_quantized and imitates_bfloat16()


def _prepare_cpu(options: EngineOptions) -> None:
    # At 1, the CPU build of vLLM runs the model in one more process behind the engine's process.
    # For a single worker this only adds 10 s of start-up and a copy of each step's input. AsyncLLM
    # gives the engine a process of its own at either value.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # OpenMP threads wait for each other by spinning. If there are as many threads as cores, any
    # other work on the machine delays one thread, and so all of them: a step then takes many times
    # as long.
    cores = sorted(os.sched_getaffinity(0))
    threads = options.cpu_threads or max(1, len(cores) - 1)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if (parts := options.tensor_parallel) > 1:
        # vLLM's default gives each part of the model a NUMA node of its own.
        shares = (cores[part::parts] or cores for part in range(parts))
        bound = "|".join(",".join(map(str, share)) for share in shares)
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", bound)
