"""An issuer that is asked for its keys, and one that means no good. Over real TLS on loopback."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from agent.errors import BadMessage, ConfigError, HostError
from lab.loopback import Pki
from lab.tokens import Issuer
from seed_server.tokens import discovery
from seed_server.tokens.discovery import discovery_source, issuer_context
from seed_server.tokens.verify import JWKS_MAX_BYTES, parse_jwks

DOCUMENT, KEYS = "/.well-known/openid-configuration", "/openid/v1/jwks"
Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Web:
    """An issuer's web server. `answers` replaces what a path says."""

    def __init__(self) -> None:
        self.issuer = Issuer()
        self.url = ""
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.path)
        if request.path in self.answers:
            return await self.answers[request.path](request)
        if request.path == KEYS:
            return web.Response(body=self.issuer.jwks(), content_type="application/jwk-set+json")
        return web.json_response({"issuer": self.url, "jwks_uri": self.url + KEYS})

    def says(self, path: str, body: bytes, status: int = 200, **headers: str) -> None:
        async def answer(_request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(body=body, status=status, headers=headers)

        self.answers[path] = answer


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("issuer"))


@pytest.fixture
async def issuer(pki: Pki) -> AsyncIterator[Web]:
    made, files = Web(), pki.server()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    runner = web.ServerRunner(web.Server(made.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    made.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


async def read(issuer: Web, pki: Pki) -> bytes:
    return await discovery_source(issuer.url, issuer_context(pki.directory / "ca.crt"))()


async def test_the_document_names_where_the_keys_are(issuer: Web, pki: Pki) -> None:
    assert set(parse_jwks(await read(issuer, pki))) == {issuer.issuer.kid}
    assert issuer.asked == [DOCUMENT, KEYS]


@pytest.mark.parametrize("path", [DOCUMENT, KEYS])
async def test_a_redirect_is_not_followed(issuer: Web, pki: Pki, path: str) -> None:
    issuer.says(path, b"", 302, Location=issuer.url + "/elsewhere")
    with pytest.raises(BadMessage, match="answers 302; redirects are not followed"):
        await read(issuer, pki)
    assert "/elsewhere" not in issuer.asked


@pytest.mark.parametrize("path", [DOCUMENT, KEYS])
async def test_a_huge_answer_is_not_read_to_its_end(issuer: Web, pki: Pki, path: str) -> None:
    sent = 0

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 64 * JWKS_MAX_BYTES:
            await response.write(b" " * 65536)
            sent += 65536
        return response

    issuer.answers[path] = answer
    with pytest.raises(BadMessage, match="is longer than"):
        await read(issuer, pki)
    assert sent < 64 * JWKS_MAX_BYTES


@pytest.mark.parametrize("path", [DOCUMENT, KEYS])
async def test_a_slow_answer_is_not_waited_for(
    issuer: Web, pki: Pki, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "WITHIN_S", 0.3)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(600):  # a byte now and then is no excuse
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    issuer.answers[path] = answer
    with pytest.raises(HostError, match="does not answer within"):
        await read(issuer, pki)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"<html>", "is not JSON"),
        (b"[]", "another issuer's"),
        (b'{"issuer": "https://evil.example", "jwks_uri": "https://evil.example/k"}', "another issuer's"),
    ],
)
async def test_a_document_that_is_wrong(issuer: Web, pki: Pki, document: bytes, words: str) -> None:
    issuer.says(DOCUMENT, document)
    with pytest.raises(BadMessage, match=words):
        await read(issuer, pki)
    assert issuer.asked == [DOCUMENT]


@pytest.mark.parametrize("url", [None, 7, "http://127.0.0.1/k", "file:///etc/passwd", "ftp://x"])
async def test_keys_are_only_asked_for_over_tls(issuer: Web, pki: Pki, url: object) -> None:
    issuer.says(DOCUMENT, json.dumps({"issuer": issuer.url, "jwks_uri": url}).encode())
    with pytest.raises(BadMessage, match="no https URL"):
        await read(issuer, pki)


async def test_another_web_server_is_not_believed(issuer: Web, tmp_path: Path) -> None:
    stranger = Pki(tmp_path / "pki")
    with pytest.raises(HostError, match="certificate"):
        await discovery_source(issuer.url, issuer_context(stranger.directory / "ca.crt"))()
    assert issuer.asked == []


async def test_nobody_there(pki: Pki) -> None:
    with pytest.raises(HostError):
        await discovery_source("https://127.0.0.1:1", issuer_context(pki.directory / "ca.crt"))()


def test_a_ca_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("nothing")
    with pytest.raises(ConfigError, match="no CA certificate"):
        issuer_context(tmp_path / "ca")
