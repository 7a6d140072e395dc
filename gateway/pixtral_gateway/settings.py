"""The settings of a gateway."""

import re
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, DirectoryPath, Field, FilePath, model_validator

from pixtral_core.image.formats import DEFAULT_FORMATS
from pixtral_core.limits import MESSAGE_BYTES
from pixtral_core.settings import (
    IMAGE_FORMATS_DESCRIPTION,
    Address,
    ImageFormats,
    ModelSettings,
    PeerTlsSettings,
    RedisSettings,
    Strings,
    Targets,
    is_loopback,
)
from pixtral_gateway.tenancy.admission import MAX_IMAGE_BYTES

MAX_INCOMING_BYTES = 6 * MESSAGE_BYTES.most
# With this limit, one tenant may still take enough for the largest message.
LEAST_INCOMING_BYTES = 2 * MESSAGE_BYTES.most


def _check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not re.fullmatch(r"(\*|\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)(:[0-9]{1,5})?", host):
            raise ValueError("must be names of hosts, .example.org, name:port or *")
    return hosts


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if not re.fullmatch(r"\*|https?://[A-Za-z0-9._\[\]:-]+", origin):
            raise ValueError("must be origins without a path, such as https://example.org, or *")
    return origins


Origins = Annotated[Strings, AfterValidator(_check_origins)]
ImageHosts = Annotated[Strings, AfterValidator(_check_hosts)]


class GatewaySettings(ModelSettings, PeerTlsSettings, RedisSettings):
    """Serves a Pixtral model over gRPC and HTTP, with the help of encoder and decoder processes."""

    doors: ClassVar[tuple[str, ...]] = ("listen", "http_listen")

    peer_fields: ClassVar[tuple[str, ...]] = ("encoders", "decoders")

    listen: Address = Field(
        "127.0.0.1:50051", description="host:port of gRPC; port 0 is any free port."
    )
    http_listen: Address | None = Field(
        None,
        description="host:port of the HTTP APIs; port 0 is any free port. If unset, the gateway "
        "serves gRPC alone.",
    )
    force_include_usage: bool = Field(
        False,
        description="End each HTTP stream with a chunk of its usage, as if the client had set "
        "stream_options.include_usage.",
    )
    disable_any_whitespace: bool = Field(
        True,
        description="Write the JSON of response_format, text.format and output_config.format on "
        "one line, so that small models end it. If false, the JSON may have any white space, as in "
        "vLLM.",
    )
    allowed_origins: Origins = Field(
        (),
        description="Origins whose pages may send requests from a browser (CORS), such as "
        "https://chat.example.org, or * for every page. If empty, only this gateway's own "
        "page may.",
    )
    page: bool | None = Field(
        None,
        description="Serve a page at / of the HTTP server, to try the model. If unset, the gateway "
        "serves it only if http_listen is a loopback address.",
    )
    model_dir: DirectoryPath = Field(
        description="Directory of the model: its params.json or config.json, and its tokenizer "
        "(tekken.json, or tokenizer.model.v7m1)."
    )
    served_model_name: Strings = Field(
        (),
        description="Names of the model in requests. Answers to a request without a name have the "
        "first one. If empty, the only name is the model's own.",
    )
    encoders: Targets = Field(
        (),
        description="host:port of each encoder, or dns:///name:port for an encoder at each "
        "current address of the name.",
    )
    decoders: Targets = Field(
        min_length=1, description="host:port of each decoder, or dns:///name:port as for encoders."
    )
    max_concurrent_requests: int | None = Field(
        None,
        ge=1,
        description="How many answers and token counts may run at once; more are refused. If "
        "unset, two for each answer that the ready decoders can run or queue.",
    )
    max_concurrent_image_bytes: int = Field(
        MAX_IMAGE_BYTES,
        ge=1,
        description="Memory for running requests: image files and data: URLs, long prompts, and "
        "answers that are not streamed. A request that needs more is refused, unless no other "
        "request runs.",
    )
    max_incoming_bytes: int = Field(
        MAX_INCOMING_BYTES,
        ge=LEAST_INCOMING_BYTES,
        description="Memory for messages, bodies and uploads while they arrive; more is refused. "
        "A tenant gets at most three quarters of it, and each worker an equal share.",
    )
    workers: int = Field(
        1,
        ge=1,
        description="Processes that serve on the same ports, to use several cores. All of them "
        "share each limit.",
    )
    request_timeout_seconds: float = Field(
        600.0, gt=0, description="The most seconds that a completion may take."
    )
    stall_seconds: float = Field(
        30.0,
        gt=0,
        description="If a replica owes answers and sends nothing to any gateway for this many "
        "seconds, the gateway does not use it for a while. Its requests move to another replica.",
    )
    api_keys: FilePath | None = Field(
        None,
        description="TOML file of tenants, with the digests of their API keys and their limits. "
        "The gateway reads it again when it changes.",
    )
    allow_anonymous: bool = Field(
        False,
        description="Without api_keys, accept every client, even from other machines.",
    )
    max_images: int = Field(16, ge=0, description="The most images in one request.")
    max_image_bytes: int = Field(20 << 20, ge=1, description="The most bytes of an image file.")
    image_url_hosts: ImageHosts = Field(
        (),
        description="Hosts from which the gateway fetches images by https URL: names, "
        ".example.org for all names below it, name:port, or * for every public host. If empty, "
        "only data: URLs are accepted.",
    )
    image_url_http: bool = Field(
        False,
        description="Fetch images from image_url_hosts by http URL, too. Anyone between "
        "the host and the gateway can read and change such images.",
    )
    image_url_timeout_seconds: float = Field(
        5.0, gt=0, description="The most seconds for fetching an image."
    )
    max_image_pixels: int = Field(
        64_000_000, ge=1, description="The most pixels of an image: width times height."
    )
    image_formats: ImageFormats = Field(
        DEFAULT_FORMATS,
        description=IMAGE_FORMATS_DESCRIPTION,
    )

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names of the model in requests. The gateway itself uses the first one."""
        return self.served_model_name or (self.model_name,)

    @property
    def has_page(self) -> bool:
        if self.page is None:
            return self.http_listen is not None and is_loopback(self.http_listen)
        return self.page

    @property
    def is_for_this_machine(self) -> bool:
        """Whether the gateway accepts every client because no other machine can reach it."""
        return self.api_keys is None and not self.allow_anonymous

    @model_validator(mode="after")
    def _check_tenants(self) -> Self:
        if self.is_for_this_machine:
            for door in self.doors:
                address: str | None = getattr(self, door)
                if address is not None and not is_loopback(address):
                    raise ValueError(
                        f"{door}: {address} is not a loopback address: set api_keys, or "
                        "allow_anonymous to accept every client"
                    )
        return self
