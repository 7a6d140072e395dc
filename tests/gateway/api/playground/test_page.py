"""The page at /, what it is served with, and by which names an open gateway is asked."""

import hashlib
import json
import re
from pathlib import Path
from posixpath import dirname, normpath
from typing import Any

import httpx
import pytest

from pixtral_gateway.api.playground import page
from pixtral_gateway.settings import GatewaySettings
from tests.support.gateway_harness import Client, gateway
from tests.support.http_chat import CHAT, HELLO

FOREIGN = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "[", ""]
ROOT = Path(__file__).parents[4]
# The files that a module or a style sheet names: another module, or a font.
NAMED = re.compile(r'(?:from |import\()"(\.[^"]+)"|url\((fonts/[^)]+\.woff2)\)')
LOCAL = ["localhost", "localhost:9", "127.0.0.1:8000", "[::1]:8000", "pixtral.localhost"]


async def test_all_that_the_page_names_is_there(http: httpx.AsyncClient) -> None:
    index = await http.get("/")
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    names = set(re.findall(r'(?:href|src)="(page/[^"]+)"', index.text))
    seen: set[str] = set()
    while names - seen:
        name = (names - seen).pop()
        seen.add(name)
        response = await http.get(f"/{name}")
        assert response.status_code == 200, name
        if name.endswith(".js"):
            assert response.headers["content-type"].startswith("text/javascript")
        named = NAMED.findall(response.text)
        names |= {normpath(f"{dirname(name)}/{path or font}") for path, font in named}
    assert {"page/main.js", "page/vendor/katex/katex.js"} <= seen
    assert "page/vendor/katex/fonts/KaTeX_Main-Regular.woff2" in seen


def test_the_libraries_are_as_they_were_published() -> None:
    vendor = Path(page.__file__).parent / "static" / "vendor"
    told = json.loads((vendor / "libraries.json").read_text("utf-8"))
    files = {path.relative_to(vendor).as_posix() for path in vendor.rglob("*") if path.is_file()}
    assert files == {*told, "libraries.json"}
    for name, each in told.items():
        digest = hashlib.sha256((vendor / name).read_bytes()).hexdigest()
        assert digest == each["sha256"], f"{name}: run `make page-libraries`"
    wanted = json.loads((ROOT / "package.json").read_text("utf-8"))["devDependencies"]
    for package in ("@highlightjs/cdn-assets", "katex", "markdown-it", "pdfjs-dist"):
        froms = {each["from"] for each in told.values()}
        versions = {each.rpartition("@")[2] for each in froms if each.startswith(package)}
        assert versions == {wanted[package]}


async def test_what_describes_the_libraries_is_not_served(http: httpx.AsyncClient) -> None:
    assert (await http.get("/page/vendor/libraries.json")).status_code == 404
    assert (await http.get("/page/vendor/katex/LICENSE.txt")).status_code == 200


async def test_nothing_is_inline_and_nothing_comes_from_elsewhere(http: httpx.AsyncClient) -> None:
    index = await http.get("/")
    policy = dict(
        part.split(" ", 1) for part in index.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["font-src"] == "'self'"
    assert policy["trusted-types"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert index.headers["x-content-type-options"] == "nosniff"
    assert index.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"<style|\son\w+=|\sstyle=|<script(?![^>]* src=)|https?://", index.text)


async def test_what_has_not_changed_is_not_sent_again(http: httpx.AsyncClient) -> None:
    first = await http.get("/page/main.js")
    assert first.headers["cache-control"] == "no-cache"
    known = {"If-None-Match": f'"other", W/{first.headers["etag"]}'}
    again = await http.get("/page/main.js", headers=known)
    assert (again.status_code, again.content) == (304, b"")
    assert (await http.get("/page/main.js", headers={"If-None-Match": '"x"'})).status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "..%2Fapp.py", "%2E%2E/app.py"])
async def test_nothing_else_is_served(http: httpx.AsyncClient, name: str) -> None:
    assert (await http.get(f"/page/{name}")).status_code == 404


async def test_it_can_be_turned_off(settings: GatewaySettings) -> None:
    async with (
        gateway(settings.model_copy(update={"page": False})) as address,
        httpx.AsyncClient(trust_env=False, timeout=60) as session,
    ):
        assert (await session.get(f"http://{address}/")).status_code == 404
        assert (await session.get(f"http://{address}/page/main.js")).status_code == 404
        assert (await session.get(f"http://{address}/version")).status_code == 200


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"http_listen": "127.0.0.1:8000"}, True),
        ({"http_listen": "localhost:8000"}, True),
        ({"http_listen": "127.0.0.1:8000", "page": False}, False),
        ({"http_listen": "0.0.0.0:8000"}, False),
        ({"http_listen": "0.0.0.0:8000", "page": True}, True),
        ({}, False),
    ],
)
def test_it_is_on_by_itself_on_this_machine_alone(
    told: dict[str, Any], expected: bool, model_dir: Path
) -> None:
    settings = GatewaySettings(
        model_dir=model_dir, decoders=["d:1"], allow_anonymous=True, allow_insecure=True, **told
    )
    assert settings.has_page is expected


def test_http_off_this_machine_needs_keys_as_well(model_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"http_listen: .* set api_keys, or allow_anonymous"):
        GatewaySettings(
            http_listen="0.0.0.0:8000", model_dir=model_dir, decoders=["d:1"], allow_insecure=True
        )


@pytest.mark.parametrize("host", FOREIGN)
async def test_a_name_that_is_pointed_here_is_refused(http: httpx.AsyncClient, host: str) -> None:
    listed = await http.get("/v1/models", headers={"Host": host})
    asked = await http.post(CHAT, json={"messages": HELLO}, headers={"Host": host})
    counted = await http.post("/tokenize", json={"messages": HELLO}, headers={"Host": host})
    assert [each.status_code for each in (listed, asked, counted)] == [421] * 3
    assert listed.json()["error"]["code"] == "host_not_local"


@pytest.mark.parametrize("host", LOCAL)
async def test_this_machines_own_names_are_taken(http: httpx.AsyncClient, host: str) -> None:
    assert (await http.get("/v1/models", headers={"Host": host})).status_code == 200


async def test_any_name_is_taken_where_others_may_ask(settings: GatewaySettings) -> None:
    async with (
        gateway(settings.model_copy(update={"allow_anonymous": True})) as address,
        httpx.AsyncClient(trust_env=False, timeout=60) as session,
    ):
        listed = await session.get(f"http://{address}/v1/models", headers={"Host": FOREIGN[0]})
    assert listed.status_code == 200


async def test_the_model_comes_with_its_limits(http: httpx.AsyncClient, client: Client) -> None:
    (card,) = (await http.get("/v1/models")).json()["data"]
    assert card["pixtral"] == {
        "max_images": client.settings.max_images,
        "max_image_bytes": client.settings.max_image_bytes,
        "max_image_pixels": client.settings.max_image_pixels,
    }
