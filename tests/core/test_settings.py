from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, SecretStr, TypeAdapter, ValidationError

from pixtral_core.image.formats import DEFAULT_FORMATS, ImageFormat
from pixtral_core.server.channel import ClientTls
from pixtral_core.settings import (
    Addresses,
    ImageFormats,
    PeerTlsSettings,
    ProcessSettings,
    RedisSettings,
    is_loopback,
    load,
)


class TierSettings(PeerTlsSettings):
    """Does this and that."""

    peer_fields = ("encoders",)
    encoders: Addresses = Field((), description="Addresses of the encoders.")
    max_images: int = Field(8, ge=1, description="The most images of a request.")
    redis_password: SecretStr | None = Field(None, description="Password of Redis.")
    eager: bool = Field(True, description="Whether to begin at once.")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "LISTEN", "MAX_IMAGES", "ENCODERS", "REDIS_PASSWORD", "EAGER"):
        monkeypatch.delenv(f"PIXTRAL_{name}", raising=False)


def refused(
    argv: list[str], capsys: pytest.CaptureFixture[str], cls: type[ProcessSettings] = TierSettings
) -> list[str]:
    with pytest.raises(SystemExit) as exited:
        load(cls, argv, prog="tier")
    assert exited.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    return err.splitlines()


def test_defaults() -> None:
    settings = load(TierSettings, [], prog="tier")
    assert settings == TierSettings()
    assert (settings.max_images, settings.encoders, settings.eager) == (8, (), True)
    assert settings.peer_tls is None


def test_flags_go_over_the_environment_and_the_environment_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tier.toml"
    file.write_text('max_images = 1\nlisten = "127.0.0.1:1"\ndrain_seconds = 1\n')
    monkeypatch.setenv("PIXTRAL_MAX_IMAGES", "2")
    monkeypatch.setenv("PIXTRAL_LISTEN", "127.0.0.1:2")
    argv = ["--config", str(file), "--max-images", "3"]
    settings = load(TierSettings, argv, prog="tier")
    assert settings.max_images == 3
    assert settings.listen == "127.0.0.1:2"
    assert settings.drain_seconds == 1


def test_the_file_can_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tier.toml"
    file.write_text('encoders = ["127.0.0.1:1", "127.0.0.1:2"]\n')
    monkeypatch.setenv("PIXTRAL_CONFIG", str(file))
    assert load(TierSettings, [], prog="tier").encoders == ("127.0.0.1:1", "127.0.0.1:2")


def test_lists_are_split_at_commas_in_the_environment_and_in_flags(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIXTRAL_ENCODERS", "127.0.0.1:1, [::1]:2")
    assert load(TierSettings, [], prog="tier").encoders == ("127.0.0.1:1", "[::1]:2")
    argv = ["--encoders", "127.0.0.1:3,127.0.0.1:4"]
    assert load(TierSettings, argv, prog="tier").encoders == ("127.0.0.1:3", "127.0.0.1:4")


def test_switches() -> None:
    assert load(TierSettings, ["--allow-insecure"], prog="tier").allow_insecure
    assert not load(TierSettings, ["--no-eager"], prog="tier").eager


def test_variables_of_other_tiers_and_empty_ones_are_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIXTRAL_SOMETHING_OF_ANOTHER_TIER", "x")
    monkeypatch.setenv("PIXTRAL_MAX_IMAGES", "")
    assert load(TierSettings, [], prog="tier") == TierSettings()


def test_settings_made_directly_read_nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_MAX_IMAGES", "5")
    assert TierSettings().max_images == 8


def test_settings_do_not_change() -> None:
    settings: Any = TierSettings()
    with pytest.raises(ValidationError):
        settings.max_images = 3


def test_help_shows_each_setting_its_default_and_its_variable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exited:
        load(TierSettings, ["--help"], prog="tier")
    assert exited.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in TierSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert field.description is not None
        assert field.description in shown
        assert f"[env: PIXTRAL_{name.upper()}]" in shown
    assert "(default: 8)" in shown
    assert "--config FILE" in shown
    assert "Does this and that." in shown


def test_each_wrong_value_is_named_with_where_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tier.toml"
    file.write_text('listen = "nowhere"\ncolour = "red"\n[decoder]\nport = 1\n')
    monkeypatch.setenv("PIXTRAL_MAX_IMAGES", "many")
    lines = refused(["--config", str(file), "--drain-seconds", "-1"], capsys)
    assert len(lines) == 5
    assert all(line.startswith("tier: ") for line in lines)
    text = "\n".join(lines)
    assert f"listen (in {file}): must be host:port" in text
    assert f"colour (in {file}): there is no such setting\n" in text
    assert f"decoder (in {file}): there is no such setting; tables of tiers are for" in text
    assert "max_images (from PIXTRAL_MAX_IMAGES): " in text
    assert "--drain-seconds: " in text


def test_unknown_flags_are_refused_without_their_value(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for argv in (["--redis-pasword", "hunter2"], ["--redis-pasword=hunter2"], ["--max", "3"]):
        [line] = refused(argv, capsys)
        assert argv[0].partition("=")[0] in line
        assert "hunter2" not in line


@pytest.mark.parametrize("source", ["flag", "file", "environment"])
def test_a_wrong_secret_is_not_shown(
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Strict(ProcessSettings):
        key: SecretStr = Field(SecretStr("0" * 16), min_length=16, description="A key.")

    argv = []
    if source == "flag":
        argv = ["--key", "hunter2"]
    elif source == "file":
        file = tmp_path / "tier.toml"
        file.write_text('key = "hunter2"\n')
        argv = ["--config", str(file)]
    else:
        monkeypatch.setenv("PIXTRAL_KEY", "hunter2")
    [line] = refused(argv, capsys, Strict)
    assert "key" in line
    assert "hunter2" not in line


def test_a_setting_without_a_default_must_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    class Needy(ProcessSettings):
        model_dir: Path = Field(description="The model.")

    [line] = refused([], capsys, Needy)
    assert "model_dir must be set" in line
    assert "--model-dir" in line
    assert "PIXTRAL_MODEL_DIR" in line


def test_a_file_that_is_missing_or_no_toml_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.toml"
    [line] = refused(["--config", str(missing)], capsys)
    assert str(missing) in line
    broken = tmp_path / "broken.toml"
    broken.write_bytes(b"listen = \xff\n")
    [line] = refused(["--config", str(broken)], capsys)
    assert str(broken) in line
    broken.write_text("listen = \n")
    [line] = refused(["--config", str(broken)], capsys)
    assert "line 1" in line


def test_formats_of_images_are_named_in_any_case() -> None:
    made: TypeAdapter[tuple[ImageFormat, ...]] = TypeAdapter(ImageFormats)
    assert made.validate_python("PNG, jpeg2000") == (ImageFormat.PNG, ImageFormat.JPEG_2000)
    assert made.validate_python(DEFAULT_FORMATS) == DEFAULT_FORMATS
    for wrong in ("heic", "", "png,svg"):
        with pytest.raises(ValidationError, match="must be one or more of png, jpeg, webp"):
            made.validate_python(wrong)


def test_plaintext_stays_on_loopback_unless_it_is_allowed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    [line] = refused(["--listen", "0.0.0.0:8000"], capsys)
    assert "0.0.0.0:8000 is not a loopback address" in line
    assert "allow_insecure" in line
    assert load(TierSettings, ["--listen", "0.0.0.0:1", "--allow-insecure"], prog="tier")
    assert load(TierSettings, ["--listen", "[::1]:1"], prog="tier")


def test_peers_are_called_without_tls_on_loopback_unless_it_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--encoders", "127.0.0.1:1,encoder:1"]
    [line] = refused(argv, capsys)
    assert "encoders: encoder:1 is not a loopback address" in line
    assert load(TierSettings, [*argv, "--allow-insecure"], prog="tier")
    authority = tmp_path / "ca.pem"
    authority.touch()
    assert load(TierSettings, [*argv, "--peer-tls-ca", str(authority)], prog="tier").peer_tls


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
    ],
)
def test_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize("address", ["", "host", ":1", "host:", "host:99999", "::1:1", "h:1x"])
def test_addresses_are_host_and_port(address: str) -> None:
    with pytest.raises(ValidationError, match=r"host:port|brackets"):
        ProcessSettings(listen=address)


def test_tls_files_belong_together(tmp_path: Path) -> None:
    file = tmp_path / "some.pem"
    file.touch()
    incomplete: list[dict[str, Any]] = [
        {"tls_certificate": file},
        {"tls_private_key": file},
        {"tls_client_ca": file},
        {"peer_tls_certificate": file},
        {"peer_tls_certificate": file, "peer_tls_private_key": file},
        {"tls_certificate": tmp_path / "none", "tls_private_key": file},
    ]
    for wrong in incomplete:
        with pytest.raises(ValidationError):
            TierSettings(**wrong)
    settings = TierSettings(peer_tls_ca=file, peer_tls_certificate=file, peer_tls_private_key=file)
    assert settings.peer_tls == ClientTls(file, file, file)


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis:///0",
        "redis://localhost",
        "redis://[::1]:1",
        "unix:///run/redis.sock",
        "rediss://:secret@redis.example:6379",
        "rediss://me:secret@redis.example",
    ],
)
def test_a_redis_here_or_one_by_tls_and_password_is_taken(url: str) -> None:
    assert RedisSettings(redis_url=url).redis_url == url


@pytest.mark.parametrize(
    "url", ["redis://redis.example", "redis://:secret@10.0.0.7:6379", "rediss://redis.example"]
)
def test_a_redis_elsewhere_without_tls_or_password_must_be_allowed(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (told,) = refused(["--redis-url", url], capsys, RedisSettings)
    assert "redis_url" in told
    assert "allow_insecure" in told
    assert "secret" not in told
    assert RedisSettings(redis_url=url, allow_insecure=True).redis_url == url


@pytest.mark.parametrize(
    "url", ["http://user:secret@host", "redis://:sec/ret@host", "redis://host?db=secret", "secret"]
)
def test_what_is_no_redis_url_is_refused_without_its_text(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (told,) = refused(["--redis-url", url], capsys, RedisSettings)
    assert told.startswith("tier: --redis-url: must be")
    assert "sec" not in told.replace("rediss", "")
