"""Settings of a process, read once at start from a TOML file, the environment and flags."""

import argparse
import inspect
import ipaddress
import os
import sys
import tomllib
from collections import ChainMap
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NoReturn, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    DirectoryPath,
    Field,
    FilePath,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from redis.asyncio.connection import parse_url

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

from pixtral_core.image.formats import ImageFormat
from pixtral_core.server.certificates import ServerCertificate
from pixtral_core.server.channel import ClientTls

S = TypeVar("S", bound="ProcessSettings")

ENV_PREFIX = "PIXTRAL_"
CONFIG_VARIABLE = "PIXTRAL_CONFIG"
# gRPC's prefix for a DNS name that has one address for each process.
DNS_SCHEME = "dns:///"


def _check_address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError("must be host:port")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("an IPv6 host must stand in brackets")
    return value


def _check_target(value: str) -> str:
    _check_address(value.removeprefix(DNS_SCHEME))
    return value


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return value


def _check_redis_url(value: str) -> str:
    try:
        parse_url(value)
    except ValueError:
        # The error's own text may quote the URL, which may contain a password.
        raise ValueError("must be a redis://, rediss:// or unix:// URL") from None
    return value


# host:port; an IPv6 host is in brackets.
Address = Annotated[str, AfterValidator(_check_address)]
# The environment and flags separate the addresses by commas; the file has an array.
Addresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_split)]
# host:port, or dns:///name:port.
Target = Annotated[str, AfterValidator(_check_target)]
Targets = Annotated[tuple[Target, ...], NoDecode, BeforeValidator(_split)]
Strings = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


def _check_image_formats(names: object) -> object:
    if not isinstance(names, tuple | list):
        return names
    by_name = {each.lower(): each for each in ImageFormat}
    unknown = [name for name in names if str(name).lower() not in by_name]
    if unknown or not names:
        raise ValueError(f"must be one or more of {', '.join(by_name)}")
    return tuple(by_name[str(name).lower()] for name in names)


ImageFormats = Annotated[
    tuple[ImageFormat, ...],
    NoDecode,
    BeforeValidator(_check_image_formats),
    BeforeValidator(_split),
]
IMAGE_FORMATS_DESCRIPTION = (
    "Accepted image formats, from png, jpeg, webp, gif, bmp, ico, avif, tiff, jpeg2000 and ppm; "
    "gateways and encoders must have the same value."
)


def is_loopback(address: str) -> bool:
    """Whether host:port can be reached from this machine alone."""
    host = address.removeprefix(DNS_SCHEME).rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ProcessSettings(BaseSettings):
    """The settings of every process. Each tier adds its own fields, all with descriptions.

    The constructor reads nothing from outside; `load` reads file, environment and flags.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        validate_default=True,
    )

    # The fields with addresses for clients. Such an address needs TLS unless it is on this machine.
    doors: ClassVar[tuple[str, ...]] = ("listen",)

    listen: Address = Field(
        "127.0.0.1:0", description="host:port of gRPC; port 0 is any free port."
    )
    metrics_listen: Address = Field(
        "127.0.0.1:0",
        description="host:port of the Prometheus metrics; port 0 is any free port.",
    )
    health_listen: Address | None = Field(
        None,
        description="host:port of health checks without TLS, for Kubernetes' gRPC probes, which "
        "do not support TLS.",
    )
    address_file: Path | None = Field(
        None, description="File in which the process writes its addresses as JSON once it listens."
    )
    drain_seconds: float = Field(
        30.0, ge=0, description="How long running requests may continue after SIGTERM."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe messages to log."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="The form of a log line on stderr."
    )
    tls_certificate: FilePath | None = Field(
        None, description="PEM file of this server's certificate chain."
    )
    tls_private_key: FilePath | None = Field(
        None, description="PEM file of the certificate's private key."
    )
    tls_client_ca: FilePath | None = Field(
        None,
        description="PEM file of the authority that must have signed each client's "
        "certificate (mTLS).",
    )
    allow_insecure: bool = Field(
        False,
        description="Allow addresses off this machine without TLS, and a Redis there "
        "without a password.",
    )

    @property
    def server_certificate(self) -> ServerCertificate | None:
        """The files with which this process serves TLS; None if it serves without TLS."""
        if self.tls_certificate is None or self.tls_private_key is None:
            return None
        return ServerCertificate(self.tls_certificate, self.tls_private_key, self.tls_client_ca)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_private_key is None):
            raise ValueError("tls_certificate and tls_private_key must be set together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_private_key")
        if self.tls_certificate is None and not self.allow_insecure:
            for door in self.doors:
                address: str | None = getattr(self, door)
                if address is not None and not is_loopback(address):
                    raise ValueError(
                        f"{door}: {address} is not a loopback address: set tls_certificate and "
                        "tls_private_key, or allow_insecure to serve without TLS"
                    )
        return self


class PeerTlsSettings(ProcessSettings):
    """For a process that calls other tiers; `peer_fields` names the fields with the other tiers'
    addresses."""

    peer_fields: ClassVar[tuple[str, ...]] = ()

    peer_tls_ca: FilePath | None = Field(
        None,
        description="PEM file of the authority of the other tiers' certificates; if unset, no TLS.",
    )
    peer_tls_certificate: FilePath | None = Field(
        None,
        description="PEM file of the certificate that this process shows to other tiers (mTLS).",
    )
    peer_tls_private_key: FilePath | None = Field(
        None, description="PEM file of the private key of peer_tls_certificate."
    )
    peer_tls_server_name: str | None = Field(
        None,
        min_length=1,
        description="The name in the other tiers' certificates; if unset, the host of the address, "
        "or the name after dns:///.",
    )

    @property
    def peer_tls(self) -> ClientTls | None:
        """The credentials that `open_channel` takes."""
        if self.peer_tls_ca is None:
            return None
        return ClientTls(
            self.peer_tls_ca,
            self.peer_tls_certificate,
            self.peer_tls_private_key,
            self.peer_tls_server_name,
        )

    @model_validator(mode="after")
    def _check_peer_tls(self) -> Self:
        if (self.peer_tls_certificate is None) != (self.peer_tls_private_key is None):
            raise ValueError("peer_tls_certificate and peer_tls_private_key must be set together")
        if self.peer_tls_certificate is not None and self.peer_tls_ca is None:
            raise ValueError("peer_tls_certificate needs peer_tls_ca")
        if self.peer_tls_ca is None and not self.allow_insecure:
            for name in self.peer_fields:
                for address in getattr(self, name):
                    if not is_loopback(address):
                        raise ValueError(
                            f"{name}: {address} is not a loopback address: set peer_tls_ca, or "
                            "allow_insecure to connect without TLS"
                        )
        return self


class RedisSettings(ProcessSettings):
    """For a process that uses the Redis of the image embeddings."""

    redis_url: Annotated[str, AfterValidator(_check_redis_url)] = Field(
        "redis://127.0.0.1:6379/0",
        description="URL of the Redis for the embeddings: unix://, redis:// on this machine, "
        "rediss:// (TLS) with a password elsewhere.",
    )

    @model_validator(mode="after")
    def _check_redis(self) -> Self:
        url = urlsplit(self.redis_url)
        is_local = url.scheme == "unix" or is_loopback(f"{url.hostname or 'localhost'}:")
        if not (is_local or self.allow_insecure or (url.scheme == "rediss" and url.password)):
            raise ValueError(
                "redis_url: the host is not a loopback address: use rediss:// and a password, or "
                "set allow_insecure"
            )
        return self


# The prefix of a model's directory in a cache of Hugging Face.
_REPOSITORY = "models--"


class ModelSettings(ProcessSettings):
    """For a process that serves a model. Tiers work together if their models have the same name."""

    # vLLM's names of flags, by the settings that mean the same.
    model_config = SettingsConfigDict(cli_shortcuts={"model": "served-model-name"})

    model_dir: DirectoryPath = Field(description="Directory of the model in Mistral format.")
    model: str = Field(
        "",
        description="The model's name, the same in every tier; if empty, the name of its "
        "directory, or the repository's id in a cache of Hugging Face.",
    )

    @cached_property
    def model_name(self) -> str:
        return self.model or name_of(self.model_dir)


def name_of(model_dir: Path) -> str:
    """The name of a model's directory, or the id of its repository if it is in a cache of Hugging
    Face.

    Such a cache has models--mistralai--Pixtral-12B-2409/snapshots/REVISION.
    """
    directory = model_dir.resolve()
    repository = directory.parent.parent.name
    if directory.parent.name == "snapshots" and repository.startswith(_REPOSITORY):
        return repository.removeprefix(_REPOSITORY).replace("--", "/")
    return directory.name


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def load(cls: type[S], argv: Sequence[str] | None = None, *, prog: str) -> S:
    """Reads settings from the TOML file, the environment and the flags; the later source wins.

    --config or PIXTRAL_CONFIG names the file. Wrong values end the process with exit code 2, and
    one line on stderr for each.
    """
    parser = _Parser(
        prog=prog,
        description=inspect.getdoc(cls),
        epilog="Traces are sent if OTEL_EXPORTER_OTLP_ENDPOINT is set; other OTEL_* variables "
        "say how.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help=f"TOML file [env: {CONFIG_VARIABLE}]")
    flags: CliSettingsSource[Any] = CliSettingsSource(
        cls,
        root_parser=parser,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
        cli_kebab_case=True,
        cli_show_env_vars=True,
    )
    arguments = list(sys.argv[1:] if argv is None else argv)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        # The message leaves out the value, which may be a secret after a misspelt flag.
        parser.error(f"{unknown[0].partition('=')[0]}: there is no such flag")
    config = known.config or os.environ.get(CONFIG_VARIABLE)
    try:
        sources = {
            "flag": flags(args=arguments)(),
            "environment": EnvSettingsSource(cls)(),
            f"in {config}": _read_file(Path(config)) if config else {},
        }
    except (SettingsError, ValueError) as error:
        parser.error(str(error))
    try:
        return cls(**dict(ChainMap(*sources.values())))
    except ValidationError as error:
        problems = [_explain(problem, sources) for problem in error.errors(include_input=False)]
        parser.exit(2, "".join(f"{prog}: {problem}\n" for problem in problems))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from None


def _explain(problem: "ErrorDetails", sources: Mapping[str, Mapping[str, Any]]) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    name = str(problem["loc"][0])
    origin = next((origin for origin, values in sources.items() if name in values), None)
    variable = ENV_PREFIX + name.upper()
    match origin, problem["type"]:
        case None, "missing":
            flag = name.replace("_", "-")
            return f"{name} must be set, by --{flag}, {variable} or the file of --config"
        case _, "extra_forbidden":
            is_table = origin is not None and isinstance(sources[origin][name], dict)
            hint = "; tables of tiers are for `pixtral-serve up --config`" if is_table else ""
            return f"{name} ({origin}): there is no such setting{hint}"
        case "flag", _:
            return f"--{name.replace('_', '-')}: {message}"
        case "environment", _:
            return f"{name} (from {variable}): {message}"
        case _:
            return f"{name} ({origin}): {message}"
