"""Asks an issuer for its keys (OpenID Connect Discovery 1.0, section 4): once for where they are, once for them.

Whoever runs the issuer is believed about keys and about nothing else: no redirect is followed, little is read, and not for long.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from agent.errors import BadMessage, ConfigError, HostError
from seed_server.tokens.keys import Source
from seed_server.tokens.verify import JWKS_MAX_BYTES

#: For both questions together; the client waits for the answer meanwhile.
WITHIN_S = 3.0
DOCUMENT_MAX_BYTES = 64 * 1024


def issuer_context(ca: Path | None) -> ssl.SSLContext:
    """Verifies the issuer's web server. Raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (ssl.SSLError, OSError) as exc:
        raise ConfigError(f"{ca}: no CA certificate in PEM format in there") from exc


def discovery_source(issuer: str, context: ssl.SSLContext) -> Source:
    """The key set that the issuer's own document names."""

    async def read() -> bytes:
        try:
            async with asyncio.timeout(WITHIN_S):
                connector = aiohttp.TCPConnector(ssl=context, limit=1)
                async with aiohttp.ClientSession(connector=connector) as session:
                    url = issuer.rstrip("/") + "/.well-known/openid-configuration"
                    document = await _get(session, url, DOCUMENT_MAX_BYTES)
                    return await _get(session, _keys_url(issuer, document), JWKS_MAX_BYTES)
        except TimeoutError as exc:
            raise HostError(f"it does not answer within {WITHIN_S:g} s") from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise HostError(f"{type(exc).__name__}: {exc}") from exc

    return read


async def _get(session: aiohttp.ClientSession, url: str, max_bytes: int) -> bytes:
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            hint = "; redirects are not followed" if 300 <= response.status < 400 else ""
            hint = (
                "; anonymous readers need system:service-account-issuer-discovery" if response.status == 403 else hint
            )
            raise BadMessage(f"{url} answers {response.status}{hint}")
        text = bytearray()
        async for chunk in response.content.iter_any():
            text += chunk
            if len(text) > max_bytes:
                raise BadMessage(f"{url} is longer than {max_bytes} bytes")
        return bytes(text)


def _keys_url(issuer: str, document: bytes) -> str:
    try:
        body = json.loads(document)
    except (ValueError, RecursionError):
        raise BadMessage("its discovery document is not JSON") from None
    if not isinstance(body, dict) or body.get("issuer") != issuer:
        raise BadMessage("its discovery document is another issuer's")
    url = body.get("jwks_uri")
    if not isinstance(url, str) or urlsplit(url).scheme != "https":
        raise BadMessage("its discovery document names no https URL for its keys")
    return url
