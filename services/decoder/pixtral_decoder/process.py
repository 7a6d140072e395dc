"""The decoder as a process: its start, its failure and its stop."""

import asyncio
import json
import logging
from pathlib import Path

import grpc
import torch
from pydantic import ValidationError

from pixtral.internal.v1 import decoder_pb2, decoder_pb2_grpc
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.cache.wire_format import DType
from pixtral_core.errors import StartupError
from pixtral_core.model.checkpoint import check_language_model, read_language, read_spec
from pixtral_core.model.fingerprint import fingerprint
from pixtral_core.model.tokenizer_file import find_tokenizer
from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec
from pixtral_decoder.checks import Limits
from pixtral_decoder.decoder import Decoder
from pixtral_decoder.embeddings.source import EmbeddingSource, PeerEncoders
from pixtral_decoder.embeddings.waiting_bytes import WaitingBytes
from pixtral_decoder.engine.engine import DecoderEngine, EngineNotStarted
from pixtral_decoder.engine.engine_args import BadEngineArguments, EngineOptions
from pixtral_decoder.engine.lora_adapters import BadAdapter
from pixtral_decoder.grpc_service import DecoderInfo, DecoderService
from pixtral_decoder.metrics import ENGINE_UP
from pixtral_decoder.settings import DecoderSettings
from pixtral_decoder.vllm_hooks import plugin
from pixtral_decoder.waiting_queue import WaitingQueue

# vLLM takes these sampling values from generation_config.json if a request does not have them.
SAMPLING_DEFAULTS = (
    "frequency_penalty",
    "max_new_tokens",
    "min_p",
    "presence_penalty",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
)

logger = logging.getLogger(__name__)


class DecoderTier:
    """The tier that `pixtral_core.server.process` runs."""

    name = "decoder"
    services: tuple[str, ...] = (
        decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name,
    )
    # Every gateway calls this method every few seconds. The log leaves these calls out.
    quiet: tuple[str, ...] = (f"{services[0]}/GetDecoderInfo",)

    def __init__(self, settings: DecoderSettings) -> None:
        self._settings = settings
        self._service = DecoderService()
        self._engine = DecoderEngine(_engine_options(settings))
        self._decoder: Decoder | None = None

    def register(self, server: grpc.aio.Server) -> None:
        decoder_pb2_grpc.add_DecoderServiceServicer_to_server(self._service, server)

    async def start(self) -> None:
        """Raises StartupError if the checkpoint or the installation cannot serve."""
        settings, engine = self._settings, self._engine
        # The check of an embedding's values takes less time with a single thread than it takes to
        # start several of torch's threads for it beside other work.
        torch.set_num_threads(1)
        if not plugin.is_installed():
            raise StartupError(
                "vLLM cannot find this project's plug-in: install the project (pip install -e .), "
                "and if VLLM_PLUGINS is set, let it name pixtral"
            )
        try:
            spec = read_spec(settings.model_dir)
            language = read_language(settings.model_dir)
            _check_generation_config(settings.model_dir)
            # With the load format `dummy`, which is for measurements, vLLM reads no weights.
            if settings.engine_args.get("load_format") != "dummy":
                check_language_model(settings.model_dir, language)
            find_tokenizer(settings.model_dir, spec, language.vocab_size)
            made_by = await asyncio.to_thread(
                fingerprint, settings.model_dir, settings.dtype, fp8=settings.vision_fp8
            )
        except BadCheckpoint as error:
            raise StartupError(str(error)) from None
        store = EmbeddingStore.from_url(settings.redis_url, width=spec.width, dtype=settings.dtype)
        source = self._source(spec, store)
        try:
            await engine.start()
        except BadEngineArguments as error:
            raise StartupError(f"engine_args: {error}") from None
        except BadAdapter as error:
            raise StartupError(f"lora_modules: {error}") from None
        except ValidationError as error:
            # vLLM refuses its configuration: a value has a wrong type, or two values contradict
            # each other.
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise StartupError(f"engine_args: vLLM: {where}: {first['msg']}") from None
        except EngineNotStarted as error:
            raise StartupError(f"the engine did not start: {error}") from None
        ENGINE_UP.set(1)
        self._decoder = Decoder(
            engine=engine,
            source=source,
            limits=Limits(
                spec,
                language.vocab_size,
                engine.context_length,
                settings.max_images,
                has_priorities=engine.has_priorities,
            ),
            fingerprint=made_by,
            queue=WaitingQueue(engine.max_running, settings.max_wait_seconds),
            waiting_bytes=WaitingBytes(
                settings.max_waiting_bytes, spec.width * settings.dtype.itemsize
            ),
        )
        info = DecoderInfo(
            model=settings.model_name,
            fingerprint=made_by,
            width=spec.width,
            dtype=settings.dtype,
            context_length=engine.context_length,
            max_running=engine.max_running,
            adapters=engine.adapters,
        )
        self._service.decoder, self._service.info = self._decoder, info
        await store.check()
        logger.info(
            "%s in %s, %d tokens of context, %d answers at once",
            info.model,
            info.dtype,
            info.context_length,
            info.max_running,
        )

    async def failed(self) -> None:
        await self._engine.wait_dead()
        ENGINE_UP.set(0)
        logger.error("the engine has died")

    async def stop(self) -> None:
        if self._decoder is not None:
            await self._decoder.close()
        await self._engine.shutdown()

    def _source(self, spec: VisionSpec, store: EmbeddingStore) -> EmbeddingSource:
        settings = self._settings
        peers = PeerEncoders(
            width=spec.width,
            dtype=settings.dtype,
            seconds=settings.peer_seconds,
            tls=settings.peer_tls,
            allow_insecure=settings.allow_insecure,
        )
        return EmbeddingSource(
            store=store, peers=peers, dtype=settings.dtype, cache_bytes=settings.cache_bytes
        )


def _engine_options(settings: DecoderSettings) -> EngineOptions:
    computes_in = settings.compute_dtype or settings.dtype
    more = dict(settings.engine_args)
    if settings.quantization is not None:
        more["quantization"] = settings.quantization
    return EngineOptions(
        model_dir=settings.model_dir,
        dtype="bfloat16" if computes_in is DType.BF16 else "float32",
        may_widen=settings.compute_dtype is None,
        context_length=settings.context_length,
        max_running=settings.max_running,
        chunked_prefill_size=settings.chunked_prefill_size,
        max_images=settings.max_images,
        image_cache_bytes=settings.engine_cache_bytes,
        kv_cache_bytes=settings.kv_cache_bytes,
        kv_host_bytes=settings.kv_host_bytes,
        gpu_memory_fraction=settings.gpu_memory_fraction,
        tensor_parallel=settings.tensor_parallel,
        cpu_threads=settings.cpu_threads,
        adapters=settings.lora_modules,
        more=more,
    )


def _check_generation_config(model_dir: Path) -> None:
    """Raises BadCheckpoint if vLLM could not read the file with the model's sampling values.

    vLLM would ignore such a file, and sample with its own values.
    """
    path = model_dir / "generation_config.json"
    if not path.exists():
        return
    try:
        defaults = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BadCheckpoint(f"{path} is not JSON: mend it, or remove it") from None
    if not isinstance(defaults, dict):
        raise BadCheckpoint(f"{path} is not a JSON object: mend it, or remove it")
    for name in SAMPLING_DEFAULTS:
        value = defaults.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise BadCheckpoint(f"{path}: {name} is not a number: mend it, or remove it")
