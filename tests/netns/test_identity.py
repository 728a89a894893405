"""Who a client is, and until when, with the real daemons: tokens, their end, revocation, one identity in two places."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lab import addresses
from lab.daemons import Daemon, program
from lab.lab import Lab
from lab.processes import wait_until
from lab.tokens import ISSUER, SUBJECT, Issuer, claims
from seed_server.audit import COMMON, SCHEMA

#: Who was refused comes back after a minute.
pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

AUDIENCE = f"spiffe://{addresses.CONTROL_PLANE}/seed-server"
NODE = f"spiffe://{addresses.CONTROL_PLANE}/shoot-client/node-1"
POD = f"http://{addresses.pod(1).v4}:{addresses.HTTP_PORT}/"


def crosses(lab: Lab) -> bool:
    return lab.seed.run(["curl", "-gsS", "-m1", POD], check=False).returncode == 0


def peers(lab: Lab) -> str:
    return lab.seed.run(["wg", "show", "rz-seed", "peers"]).stdout.strip()


def start(*daemons: Daemon) -> None:
    for daemon in daemons:
        daemon.start()
    for daemon in reversed(daemons):
        daemon.wait_ready()


class Kubelet:
    """Puts tokens where a projected volume would, with the same swap of a symlink."""

    def __init__(self, directory: Path, issuer: Issuer) -> None:
        self.path = directory / "token"
        self._directory = directory
        self._issuer = issuer
        self._count = 0

    def write(self, lifetime_s: float, audience: str = AUDIENCE) -> str:
        self._count += 1
        token = self._issuer.sign(claims(audience, lifetime_s=lifetime_s))
        version = self._directory / f"..{self._count}"
        version.write_text(token)
        fresh = self._directory / "..fresh"
        fresh.symlink_to(version)
        fresh.replace(self.path)
        return token


def with_tokens(lab: Lab) -> tuple[Daemon, Daemon, Kubelet]:
    """A server that takes an issuer's tokens, and a client that shows one."""
    issuer = Issuer()
    keys = lab.seed.directory / "jwks.json"
    keys.write_bytes(issuer.jwks())
    server = lab.seed_server(
        oidc_issuers=[ISSUER], oidc_subjects=[f"{SUBJECT}=shoot-client"], oidc_jwks_file=str(keys), log_level="debug"
    )
    (lab.node.directory / "projected").mkdir()
    kubelet = Kubelet(lab.node.directory / "projected", issuer)
    client = lab.shoot_client(token_file=str(kubelet.path), log_level="debug")
    for name in ("tls_certificate", "tls_key"):
        del client.settings[name]
    return server, client, kubelet


def test_a_token_opens_the_tunnel_until_it_ends(make_lab: type[Lab]) -> None:
    lab = make_lab("envoy-sni")
    server, client, kubelet = with_tokens(lab)
    tokens = [kubelet.write(20.0)]
    start(server, client)
    assert crosses(lab)
    first = client.status().token_expires_in_s
    assert first is not None and 0 < first <= 20

    # A newer token is shown in time, on a new stream, and nothing is lost meanwhile.
    tokens.append(kubelet.write(40.0))
    with lab.seed.probe("udp", addresses.pod(1).v4, addresses.ECHO_PORT, rate=50) as probe:
        wait_until(
            lambda: (client.status().grant_expires_in_s or 0) > 21, "a grant that lasts as long as the new token", 30
        )
    assert probe.report.lost == 0

    # One that is not renewed ends, and its peer with it.
    ends_at = time.monotonic() + (client.status().token_expires_in_s or 0)
    wait_until(lambda: time.monotonic() >= ends_at, "the token's end", 60)
    removed_s = wait_until(lambda: not peers(lab), "the peer's removal", 5)
    assert removed_s < 5 and not crosses(lab)
    wait_until(lambda: "it has expired" in client.log(), "the refusal in the client's log", 30)
    wait_until(lambda: "the grant ran out" in client.log(), "the client's own end of the grant", 10)
    refused = 'rhizome_connections_turned_away_total{cause="token_expired"}'
    wait_until(lambda: server.metrics().get(refused, 0) >= 1, "the refusal being counted", 10)
    metrics = server.metrics()
    seen = server.log() + client.log() + json.dumps(metrics) + repr(server.status()) + repr(client.status())
    assert not any(part in seen for token in tokens for part in token.split(".")[1:])


def revoke(lab: Lab, file: Path, *words: str) -> None:
    lab.seed.run([program("rhizome-agent"), "revoke", NODE, "--deny-file", str(file), *words])


def test_a_revoked_client_is_cut_within_five_seconds_and_stays_out(make_lab: type[Lab]) -> None:
    lab = make_lab("envoy-connect")
    deny = lab.seed.directory / "deny.txt"
    deny.touch()
    audit = lab.seed.directory / "audit.log"
    server, client = lab.seed_server(deny_file=str(deny), audit_log=str(audit)), lab.shoot_client()
    start(server, client)
    assert crosses(lab)

    revoke(lab, deny)
    wait_until(lambda: not peers(lab), "the peer's removal", 5)
    assert not crosses(lab)
    wait_until(lambda: not client.ready(), "the client knowing it", 10)
    wait_until(lambda: "was revoked" in client.status().sentence, "the client saying why", 30)

    server.kill()
    server.start()
    wait_until(lambda: "is not let in" in server.log(), "a refusal after the restart", 90)
    assert not peers(lab) and not crosses(lab)

    revoke(lab, deny, "--undo")
    client.wait_ready(90)
    assert crosses(lab)

    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert {line["event"] for line in lines} >= {
        *("server.started", "stream.up", "enroll.granted", "client.expelled", "stream.down", "policy.changed"),
    }
    for line in lines:
        assert line.keys() <= COMMON.keys() | set(SCHEMA[line["event"]].fields), line


def test_a_client_that_was_revoked_while_no_server_ran_is_cut_by_the_next_one(make_lab: type[Lab]) -> None:
    lab = make_lab("none")
    deny = lab.seed.directory / "deny.txt"
    deny.touch()
    server, client = lab.seed_server(deny_file=str(deny)), lab.shoot_client()
    start(server, client)
    server.kill()
    revoke(lab, deny)
    assert peers(lab) and crosses(lab), "without a server nobody reads the list"
    server.start()
    wait_until(lambda: not peers(lab), "the removal of the adopted peer", 15)
    assert not crosses(lab)


def test_one_identity_in_two_places_is_found_and_kept_out(make_lab: type[Lab]) -> None:
    lab = make_lab("none", nodes=2)
    server, client = lab.seed_server(), lab.shoot_client()
    thief = lab.shoot_client(2)
    for name in ("tls_certificate", "tls_key"):
        thief.settings[name] = client.settings[name]
    start(server, client)
    assert crosses(lab)
    thief.start()
    wait_until(lambda: server.metrics().get("rhizome_identity_conflicts_total", 0) == 1, "the conflict", 30)
    wait_until(lambda: not peers(lab), "both being out", 10)
    status = server.status()
    assert any("in two places" in cause and NODE in cause for cause in status.causes), status.causes
    wait_until(lambda: "two places" in client.status().sentence, "the owner knowing why", 30)
