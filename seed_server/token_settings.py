"""What can be set about tokens on a seed server. The table is the documentation: see docs/configuration.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.kinds import PATH, SECRET_PATH, TEXT, URL, integer
from agent.role_settings import RoleSettings
from agent.settings import Rule, setting, settings
from seed_server.tokens.policy import SUBJECT, Subject

TOKENS = "Tokens"

#: A machine that is away for as long as its credential lasts has to be enrolled again by hand.
ENROLMENT_LIFETIME_MIN_S, ENROLMENT_LIFETIME_MAX_S = 10, 30 * 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings(RoleSettings):
    """Whom a seed server believes without a certificate."""

    oidc_issuers: tuple[str, ...] = settings(
        URL,
        "issuers of tokens that clients may show instead of a certificate, such as the one of the shoot's ServiceAccount "
        "tokens, as `iss` names it; empty: no tokens",
        group=TOKENS,
    )
    oidc_audiences: tuple[str, ...] = settings(
        TEXT,
        "audiences, one of which a token has to be for; empty: this server's own, spiffe://CONTROL_PLANE/seed-server",
        group=TOKENS,
    )
    oidc_subjects: tuple[Subject, ...] = settings(
        SUBJECT,
        "what the holder of a token may be, by its `sub`; a shoot client is named after the token's node, others after its pod",
        group=TOKENS,
    )
    oidc_jwks_file: Path | None = setting(
        PATH,
        "JSON Web Key Set of the only issuer, for networks where it cannot be asked; read again when it changes; "
        "empty: OpenID Connect discovery",
        group=TOKENS,
        default=None,
        file=True,
    )
    oidc_ca: Path | None = setting(
        PATH,
        "PEM file with the CA of the issuers' web servers; empty: those that this system trusts",
        group=TOKENS,
        default=None,
        file=True,
    )
    oidc_max_age_s: int = setting(
        integer(10, 86400, "SECONDS"),
        "for how long an issuer's keys are used when they cannot be read again; then its tokens are refused",
        group=TOKENS,
        default=3600,
        unit="seconds",
    )

    enrolment_file: Path | None = setting(
        PATH,
        "list of one-time tokens with which machines enrol that have neither certificate nor token, which the command enrol-token "
        "writes; read again when it changes; empty: none",
        group=TOKENS,
        default=None,
        file=True,
    )
    enrolment_secret: Path | None = setting(
        SECRET_PATH,
        "file with a secret of at least 32 characters in each line, from which the keys are derived that sign the credentials of such "
        "machines; the first line signs, all are believed; read again when it changes; empty: there are no such credentials",
        group=TOKENS,
        default=None,
        file=True,
    )
    enrolment_dir: Path | None = setting(
        PATH,
        "directory that remembers which one-time tokens were used, without any secret, on a disk that outlives this process; servers "
        "that share it share that memory; empty: none, and no such tokens",
        group=TOKENS,
        default=Path("/var/lib/rhizome/enrolled"),
        optional=True,
    )
    enrolment_lifetime_s: int = setting(
        integer(ENROLMENT_LIFETIME_MIN_S, ENROLMENT_LIFETIME_MAX_S, "SECONDS"),
        "how long such a credential lasts, and so how long a machine may be away; it is renewed when half of that is left",
        group=TOKENS,
        default=7 * 86400,
        unit="seconds",
    )

    def check(self) -> Iterator[Rule]:
        yield from RoleSettings.check(self)
        if self.oidc_issuers and not self.oidc_subjects:
            yield Rule(
                ("oidc_subjects",), "empty: no holder of a token may be anything; name the client's ServiceAccount"
            )
        if self.oidc_subjects and not self.oidc_issuers:
            yield Rule(("oidc_subjects", "oidc_issuers"), "without an issuer no token is believed: name it")
        if self.oidc_jwks_file is not None and len(self.oidc_issuers) != 1:
            yield Rule(("oidc_jwks_file", "oidc_issuers"), "the keys in the file are one issuer's: name exactly one")
        if self.enrolment_file is not None and self.enrolment_secret is None:
            text = (
                "nothing to sign the credentials with that machines get for their tokens: make a file with `wg genkey`"
            )
            yield Rule(("enrolment_file", "enrolment_secret"), text)
        if self.enrolment_file is not None and self.enrolment_dir is None:
            text = "nowhere to remember which tokens were used: name a directory on a disk that stays"
            yield Rule(("enrolment_file", "enrolment_dir"), text)

    @property
    def takes_tokens(self) -> bool:
        """Whether a client may come without a certificate."""
        return bool(self.oidc_issuers) or self.enrolment_secret is not None
