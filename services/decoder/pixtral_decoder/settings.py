"""The settings of a decoder."""

import json
from contextlib import suppress
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, DirectoryPath, Field, model_validator
from pydantic_settings import SettingsConfigDict

from pixtral_core.cache.wire_format import DType
from pixtral_core.settings import Address, ModelSettings, PeerTlsSettings, RedisSettings
from pixtral_decoder.engine.engine_args import check_owned

MIB = 1 << 20


def _check_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    check_owned(arguments)
    return {name: _value(given) for name, given in arguments.items()}


def _value(given: Any) -> Any:
    """The value that a flag's text stands for, or the text itself if it is not JSON."""
    if isinstance(given, str):
        with suppress(ValueError):
            return json.loads(given)
    return given


class DecoderSettings(ModelSettings, PeerTlsSettings, RedisSettings):
    """Answers prompts for a Pixtral model: its language model, in vLLM, on GPUs or a CPU."""

    model_config = SettingsConfigDict(
        cli_shortcuts={
            "model": "served-model-name",
            "context-length": "max-model-len",
            "max-running": "max-num-seqs",
            "gpu-memory-fraction": "gpu-memory-utilization",
            "kv-cache-bytes": "kv-cache-memory-bytes",
            "tensor-parallel": "tensor-parallel-size",
        }
    )

    listen: Address = Field(
        "127.0.0.1:50053", description="host:port of gRPC; port 0 is any free port."
    )
    model_dir: DirectoryPath = Field(
        description="Directory of the model, in Mistral's format (params.json, "
        "consolidated*.safetensors, tekken.json) or Hugging Face's (config.json, "
        "model*.safetensors, and tekken.json unless mistral_common ships it)."
    )
    dtype: Literal[DType.BF16, DType.F32] = Field(
        DType.BF16,
        description="The dtype of embeddings and weights; the encoders must have the same value.",
    )
    compute_dtype: Literal[DType.BF16, DType.F32] | None = Field(
        None,
        description="The dtype in which the language model computes; unset: dtype. On a CPU "
        "without instructions for bf16 the default is f32, which is several times as fast there "
        "and takes twice the memory.",
    )
    vision_fp8: bool = Field(
        False,
        description="Take embeddings of encoders that multiply in 8 bits; the encoders must have "
        "the same value.",
    )
    cache_bytes: int = Field(
        512 * MIB, ge=64 * MIB, description="Bytes of embeddings in this process's memory."
    )
    engine_cache_bytes: int = Field(
        1024 * MIB, ge=64 * MIB, description="Bytes of embeddings in the engine's process."
    )
    context_length: int = Field(
        32_768,
        ge=1,
        description="The most tokens of a prompt and its answer together; at most the model's own "
        "limit.",
    )
    max_images: int = Field(32, ge=1, description="The most images in one prompt.")
    max_running: int | None = Field(
        None,
        ge=1,
        description="How many answers the engine works on at once; unset: as many as vLLM does by "
        "default, 1024 on a GPU of 70 GiB or more, 256 on a smaller one or an A100, 128 on a CPU.",
    )
    chunked_prefill_size: int | None = Field(
        None,
        ge=1,
        description="The most tokens of prompts that a step of the engine takes in while answers "
        "wait for their next token; unset: 1536. While prompts arrive, a smaller size makes the "
        "tokens of answers come faster and more evenly, and first tokens later.",
    )
    max_wait_seconds: float = Field(
        60.0,
        ge=0,
        description="The most seconds that an answer waits for the engine. The decoder estimates "
        "them from the rate at which answers end, and at once refuses an answer that would wait "
        "longer.",
    )
    max_waiting_bytes: int = Field(
        4096 * MIB,
        ge=64 * MIB,
        description="The most bytes of embeddings of requests that wait for the engine; the "
        "decoder refuses a request that exceeds them. An image of several requests counts once.",
    )
    peer_seconds: float = Field(
        5.0, gt=0, description="The most seconds for fetching an embedding from an encoder."
    )
    kv_cache_bytes: int | None = Field(
        None,
        ge=64 * MIB,
        description="Bytes of memory for keys and values; unset: the rest of the GPU's memory, or "
        "1 GiB on a CPU.",
    )
    kv_host_bytes: int = Field(
        0,
        ge=0,
        description="Bytes of the machine's memory, in /dev/shm, for keys and values beyond the "
        "memory of all the decoder's GPUs; 0 is none. `pixtral-serve doctor` says how much the "
        "machine has. No effect on a CPU.",
    )
    gpu_memory_fraction: float = Field(
        0.9, gt=0, le=1, description="The share of each GPU's memory that the engine may use."
    )
    tensor_parallel: int = Field(1, ge=1, description="How many GPUs share the model.")
    cpu_threads: int | None = Field(
        None,
        ge=1,
        description="How many threads compute on a CPU; unset: one fewer than the cores.",
    )
    lora_modules: dict[str, DirectoryPath] = Field(
        {},
        description="LoRA adapters in PEFT's form, by the names that requests use as their model: "
        "a table of names and directories in the file, NAME=DIRECTORY in each of several flags, a "
        "JSON object in the variable.",
    )
    quantization: str | None = Field(
        None,
        description="Quantise weights of 16 bits at load, by the method with this name in vLLM, "
        "such as fp8 on a GPU, or int8_per_channel_weight_only, which works on a CPU, too; unset: "
        "weights stay as in the checkpoint.",
    )
    engine_args: Annotated[dict[str, Any], AfterValidator(_check_arguments)] = Field(
        {},
        description="More arguments of vLLM's engine, with the names of its AsyncEngineArgs, "
        "such as seed or speculative_config: a table in the file, NAME=VALUE in each "
        "of several flags, a JSON object in the variable.",
    )

    @model_validator(mode="after")
    def _check_adapters(self) -> Self:
        if "" in self.lora_modules or self.model_name in self.lora_modules:
            raise ValueError("lora_modules: an adapter needs a name, and not the model's own")
        return self

    @model_validator(mode="after")
    def _check_quantization(self) -> Self:
        if self.quantization is not None and "quantization" in self.engine_args:
            raise ValueError("quantization is set twice: leave it out of engine_args")
        return self
