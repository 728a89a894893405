"""From the settings to a gate. Imported only where tokens are let in: the libraries behind it cost 20 MiB."""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.carrier.api import Command
from agent.identity import Identity, Role
from seed_server.settings import Settings
from seed_server.tokens.discovery import discovery_source, issuer_context
from seed_server.tokens.gate import Gate
from seed_server.tokens.keys import FILE_REFRESH_S, REFRESH_S, KeyRing, Verifier, file_source
from seed_server.tokens.policy import TokenPolicy


def gate(settings: Settings, send: Callable[[Command], None], wall: Callable[[], float]) -> Gate:
    """Raises ConfigError for an unusable CA."""
    return Gate(Verifier(policy(settings), _rings(settings)), send, wall)


def policy(settings: Settings) -> TokenPolicy:
    own = str(Identity(settings.control_plane, Role.SEED_SERVER))
    return TokenPolicy(
        settings.control_plane, settings.oidc_issuers, settings.oidc_audiences or (own,), settings.oidc_subjects
    )


def _rings(settings: Settings) -> dict[str, KeyRing]:
    max_age_s = float(settings.oidc_max_age_s)
    if settings.oidc_jwks_file is not None:
        source, refresh_s = file_source(settings.oidc_jwks_file), FILE_REFRESH_S
        return {
            issuer: KeyRing(issuer, source, time.monotonic, refresh_s=refresh_s, max_age_s=max_age_s)
            for issuer in settings.oidc_issuers
        }
    context = issuer_context(settings.oidc_ca)
    return {
        issuer: KeyRing(
            issuer, discovery_source(issuer, context), time.monotonic, refresh_s=REFRESH_S, max_age_s=max_age_s
        )
        for issuer in settings.oidc_issuers
    }
