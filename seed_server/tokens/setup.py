"""From the settings to a gate. Imported only where tokens are let in: the libraries behind it cost 20 MiB."""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.carrier.api import Command
from agent.identity import Identity, Role
from seed_server.server import SeedServer
from seed_server.settings import Settings
from seed_server.tokens.desk import Desk
from seed_server.tokens.discovery import discovery_source, issuer_context
from seed_server.tokens.gate import Gate
from seed_server.tokens.keys import FILE_REFRESH_S, REFRESH_S, KeyRing, Verifier, file_source
from seed_server.tokens.own import Mint, Renewal
from seed_server.tokens.policy import Policy, TokenPolicy
from seed_server.tokens.spent import SpentTokens


def gate(settings: Settings, send: Callable[[Command], None], wall: Callable[[], float], server: SeedServer) -> Gate:
    """Also has the server's grants bring newer credentials. Raises ConfigError for an unusable CA, secret, file or directory."""
    policies: list[Policy] = [policy(settings)]
    rings, desk = _rings(settings), None
    if settings.enrolment_secret is not None:
        mint = Mint(settings.enrolment_secret, settings.control_plane, settings.enrolment_lifetime_s, wall)
        policies.append(mint.policy)
        (issuer,) = mint.policy.issuers
        age_s = float(settings.oidc_max_age_s)
        rings[issuer] = KeyRing(issuer, mint.jwks, time.monotonic, refresh_s=FILE_REFRESH_S, max_age_s=age_s)
        server.live.renew = Renewal(mint, server.journal).credential
        desk = _desk(settings, issuer, server)
    return Gate(Verifier(rings, *policies), send, wall, desk)


def _desk(settings: Settings, issuer: str, server: SeedServer) -> Desk | None:
    if settings.enrolment_file is None or settings.enrolment_dir is None:
        return None
    spent = SpentTokens(settings.enrolment_dir)
    spent.open()
    # Half of a credential's life: then it is shown itself, on a stream of its own, and is renewed from there.
    lasts_s = settings.enrolment_lifetime_s / 2
    return Desk(settings.enrolment_file, spent, server.journal, server.warden, issuer=issuer, lasts_s=lasts_s)


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
