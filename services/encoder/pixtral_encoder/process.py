"""The encoder as a process: loads everything at start, in the right order."""

import asyncio
import logging

import grpc
import torch

from pixtral.internal.v1 import encoder_pb2, encoder_pb2_grpc
from pixtral_core.cache.embedding_store import EmbeddingStore
from pixtral_core.cache.wire_format import DType
from pixtral_core.errors import StartupError
from pixtral_core.model.checkpoint import read_spec
from pixtral_core.model.fingerprint import fingerprint
from pixtral_core.model.vision_spec import BadCheckpoint, VisionSpec
from pixtral_core.server import container
from pixtral_encoder.batcher import Batcher
from pixtral_encoder.encoder import Encoder
from pixtral_encoder.grpc_service import EncoderInfo, EncoderService
from pixtral_encoder.image.decode_processes import NoProcess
from pixtral_encoder.image.preprocess import Preprocessor
from pixtral_encoder.settings import EncoderSettings
from pixtral_encoder.tower import fp8, malloc
from pixtral_encoder.tower.compute_dtype import compute_dtype, cpu_rates
from pixtral_encoder.tower.tower import VisionTower
from pixtral_encoder.tower.weights import load_tower

logger = logging.getLogger(__name__)

TORCH_DTYPES = {DType.BF16: torch.bfloat16, DType.F32: torch.float32}
# torch's default is one thread for each physical core of the machine, even if the container may use
# only some of them.
THREADS = min(torch.get_num_threads(), container.cpus())


class EncoderTier:
    """The tier that `pixtral_core.server.process` runs."""

    name = "encoder"
    services: tuple[str, ...] = (
        encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name,
    )
    # Every gateway sends this RPC every few seconds, so it is neither logged nor traced.
    quiet: tuple[str, ...] = (f"{services[0]}/GetEncoderInfo",)

    def __init__(self, settings: EncoderSettings) -> None:
        self._settings = settings
        self._service = EncoderService()
        self._encoder: Encoder | None = None
        self._device_lost = asyncio.Event()

    def register(self, server: grpc.aio.Server) -> None:
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(self._service, server)

    async def start(self) -> None:
        """Raises StartupError if the checkpoint or the device cannot serve."""
        settings = self._settings
        # OpenMP's threads stay awake between the steps of a layer only if a single thread uses
        # them. So the tower's thread uses them, and all other threads compute without them.
        torch.set_num_threads(1)
        try:
            spec = read_spec(settings.model_dir)
            tower, made_by = await asyncio.to_thread(self._load, spec)
        except BadCheckpoint as error:
            raise StartupError(str(error)) from None
        batcher = Batcher(
            tower.begin,
            batch_patches=settings.batch_patches,
            queue_patches=settings.queue_patches,
            device_lost=self._device_lost,
        )
        try:
            # The number applies to the thread that sets it and to threads that start later. So the
            # tower's thread sets its own number, and then this thread sets 1 again.
            await batcher.prepare(lambda: torch.set_num_threads(settings.threads or THREADS))
            torch.set_num_threads(1)
            await batcher.prepare(tower.prepare)
        except Exception:
            logger.exception("the vision tower does not run")
            await batcher.close()
            raise StartupError(
                f"the vision tower does not run on {_describe(tower.device)}; "
                "with enforce_eager it needs no C compiler"
            ) from None
        preprocessor = Preprocessor(
            spec,
            workers=settings.decode_processes,
            max_pixels=settings.max_image_pixels,
            timeout_seconds=settings.decode_seconds,
            memory_bytes=settings.decode_bytes,
            formats=settings.image_formats,
        )
        store = EmbeddingStore.from_url(settings.redis_url, width=spec.width, dtype=settings.dtype)
        self._encoder = Encoder(
            spec=spec,
            dtype=settings.dtype,
            fingerprint=made_by,
            preprocessor=preprocessor,
            tower=tower,
            batcher=batcher,
            store=store,
            cache_bytes=settings.cache_bytes,
            queue_images=settings.queue_images,
            queue_bytes=settings.queue_bytes,
            max_image_bytes=settings.max_image_bytes,
            images_decoding=settings.decode_processes,
        )
        await store.check()
        try:
            await preprocessor.start()
        except NoProcess:
            raise StartupError("cannot start a process that decodes images") from None
        info = EncoderInfo(
            model=settings.model_name,
            fingerprint=made_by,
            width=spec.width,
            dtype=settings.dtype,
            device=_describe(tower.device),
        )
        self._service.encoder, self._service.info = self._encoder, info
        logger.info("%s in %s on %s", info.model, info.dtype, info.device)

    async def failed(self) -> None:
        await self._device_lost.wait()
        logger.error("the device is lost")

    async def stop(self) -> None:
        if self._encoder is not None:
            await self._encoder.close()

    def _load(self, spec: VisionSpec) -> tuple[VisionTower, str]:
        settings = self._settings
        device = self._device()
        if device.type == "cpu":
            malloc.keep_what_is_freed()
        if settings.vision_fp8 and settings.dtype is not DType.BF16:
            raise StartupError("vision_fp8 needs dtype bf16")
        if settings.vision_fp8 and not fp8.is_possible(device):
            raise StartupError(
                f"vision_fp8 needs an H100 or a newer GPU, and this is {_describe(device)}"
            )
        if settings.vision_fp8:
            fp8.check_upstream()
        dtype = TORCH_DTYPES[settings.dtype]
        # With vision_fp8, values between the products must be rounded to bf16, because the
        # fingerprint promises this.
        computes_in = dtype if settings.vision_fp8 else compute_dtype(dtype, device)
        logger.info("the vision tower computes in %s", _reason(computes_in, dtype, device))
        tower = load_tower(
            settings.model_dir,
            spec,
            dtype=dtype,
            device=device,
            computes_in=computes_in,
            is_compiled=device.type == "cuda" and not settings.enforce_eager,
            is_fp8=settings.vision_fp8,
        )
        made_by = fingerprint(settings.model_dir, settings.dtype, fp8=settings.vision_fp8)
        return tower, made_by

    def _device(self) -> torch.device:
        chosen, has_gpu = self._settings.device, torch.cuda.is_available()
        if chosen == "cuda" and not has_gpu:
            raise StartupError("device is cuda, and torch finds no GPU")
        return torch.device("cpu" if chosen == "cpu" or not has_gpu else "cuda")


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _reason(computes_in: torch.dtype, asked: torch.dtype, device: torch.device) -> str:
    name = str(computes_in).removeprefix("torch.")
    if device.type != "cpu" or asked is not torch.bfloat16:
        return name
    rates = cpu_rates()
    said = ", ".join(f"{each / 1e9:.1f} GFLOP/s in {dtype}" for dtype, each in rates.items())
    return f"{name}: a core multiplies {said.replace('torch.', '')}"
