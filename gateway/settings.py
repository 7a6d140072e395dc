"""What a gateway is told at its start."""

from typing import ClassVar

from pydantic import DirectoryPath, Field

from serving.settings import Address, ModelSettings, PeerTlsSettings, RedisSettings, Targets


class GatewaySettings(ModelSettings, PeerTlsSettings, RedisSettings):
    """Serves a Pixtral model over gRPC and HTTP, by way of encoder and decoder processes."""

    doors: ClassVar[tuple[str, ...]] = ("listen", "http_listen")

    peer_fields: ClassVar[tuple[str, ...]] = ("encoders", "decoders")

    listen: Address = Field(
        "127.0.0.1:50051", description="host:port to serve gRPC on; port 0 is any."
    )
    http_listen: Address | None = Field(
        None,
        description="host:port to serve OpenAI's HTTP API on; port 0 is any; unset: gRPC alone.",
    )
    model_dir: DirectoryPath = Field(
        description="Directory of the model in Mistral format: its params.json and tekken.json."
    )
    encoders: Targets = Field(
        (),
        description="host:port of each encoder, or dns:///name:port for one at every address that "
        "the name has at the time.",
    )
    decoders: Targets = Field(
        min_length=1, description="Of each decoder: host:port or dns:///name:port."
    )
    max_concurrent_requests: int = Field(
        256,
        ge=1,
        description="Completions and token counts that may run at once; more are refused.",
    )
    request_timeout_seconds: float = Field(
        600.0, gt=0, description="The longest that a completion may take."
    )
    max_images: int = Field(16, ge=0, description="Images that one request may hold.")
    max_image_bytes: int = Field(
        20 << 20, ge=1, description="The largest image file that is taken, in bytes."
    )
    max_image_pixels: int = Field(
        64_000_000, ge=1, description="The largest image that is taken, as width times height."
    )
