"""Machines without a certificate and without another's token: they enrol once, with the real daemons, and stay by themselves."""

from __future__ import annotations

import json
import stat
import time
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest

from agent.onetime import taken
from lab import addresses
from lab.daemons import Daemon, program
from lab.lab import Lab
from lab.processes import LabError, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(400)]

#: Long enough for a busy machine to restart a client within half of it.
LIFETIME_S = 120
NODE = f"spiffe://{addresses.CONTROL_PLANE}/shoot-client/edge-1"
POD = f"http://{addresses.pod(1).v4}:{addresses.HTTP_PORT}/"
SPENT = 'rhizome_connections_turned_away_total{cause="enrolment_spent"}'


def crosses(lab: Lab) -> bool:
    return lab.seed.run(["curl", "-gsS", "-m1", POD], check=False).returncode == 0


class Site:
    """A seed server that takes one-time tokens, and where machines keep theirs."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.directory = lab.seed.directory
        self.tokens = self.directory / "tokens.txt"
        self.tokens.touch()
        (self.directory / "secret").write_text("a" * 43 + "=\n")
        self.audit = self.directory / "audit.log"
        self.server = lab.seed_server(
            enrolment_file=str(self.tokens),
            enrolment_secret=str(self.directory / "secret"),
            enrolment_dir=str(self.directory / "enrolled"),
            enrolment_lifetime_s=LIFETIME_S,
            audit_log=str(self.audit),
            log_level="debug",
        )

    def token(self) -> str:
        words = [program("rhizome-agent"), "enrol-token", "create", NODE, "--file", str(self.tokens)]
        return self.lab.seed.run(words).stdout.strip()

    def machine(self, index: int, token: str) -> tuple[Daemon, Path]:
        """A client without a certificate, and its file, which has this token."""
        directory = self.lab.nodes[index - 1].directory / "credential"
        directory.mkdir()
        (directory / "token").write_text(token + "\n")
        client = self.lab.shoot_client(index, token_file=str(directory / "token"), log_level="debug")
        for name in ("tls_certificate", "tls_key"):
            del client.settings[name]
        return client, directory / "token"

    def audited(self, event: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.audit.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]


def gone(lab: Lab, client: Daemon) -> None:
    """The client, its carrier and its device are no more, as after a reboot."""
    client.stop()
    client.machine.run([program("rhizome-agent"), "cleanup"])


def sentence(client: Daemon) -> str:
    """What it says of itself, as soon as it can be asked."""
    try:
        return client.status().sentence
    except LabError:
        return ""


def refusals(server: Daemon) -> float:
    """How often the server that runs now has refused a token that was used, as soon as it can be asked."""
    try:
        return server.metrics().get(SPENT, 0)
    except LabError:
        return 0


def subject(credential: str) -> str:
    payload = credential.split(".")[1]
    return str(json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"])


def test_a_machine_enrols_once_and_stays(make_lab: type[Lab]) -> None:
    lab = make_lab("envoy-sni", nodes=2)
    site = Site(lab)
    token = site.token()
    ours = taken(token, bytes(16))  # as the client itself would make it, so that the test knows it
    client, file = site.machine(1, ours)
    site.server.start()
    client.start()
    client.wait_ready(60)
    assert crosses(lab)

    # What it shows from now on is in the place of the token, for nobody else to read.
    wait_until(lambda: file.read_text().startswith("ey"), "the credential", 10)
    first = file.read_text().strip()
    assert subject(first) == NODE and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["token"]

    # After a reboot it comes back with that.
    gone(lab, client)
    assert not crosses(lab)
    client.start()
    client.wait_ready(60)
    assert crosses(lab)

    # A crash before the credential was on its disk: it may show its token once more.
    gone(lab, client)
    file.write_text(ours)
    client.start()
    client.wait_ready(60)
    wait_until(lambda: file.read_text().startswith("ey"), "the credential, again", 10)
    assert file.read_text().strip() != first
    first = file.read_text().strip()

    # Another machine with the same token is told why not, and disturbs nobody.
    other, _ = site.machine(2, token)
    other.start()
    wait_until(lambda: "another machine has used it" in sentence(other), "the refusal in words", 30)
    assert "have a new one made" in sentence(other) and crosses(lab)
    assert len(site.audited("enrolment.spent")) == 1
    assert site.audited("enrolment.refused")[0]["reason"] == "spent"
    assert site.server.metrics()["rhizome_identity_conflicts_total"] == 1
    other.stop()

    # So it is after a restart of the server, which finds its carrier gone too.
    gone(lab, site.server)
    site.server.start()
    other.start()
    wait_until(lambda: refusals(site.server) >= 1, "the refusal after the restart", 60)
    assert "another machine has used it" in sentence(other)
    other.stop()
    client.wait_ready(60)
    assert crosses(lab)

    # The credential is renewed over the stream, long before it ends.
    wait_until(lambda: file.read_text().strip() != first, "a newer credential", LIFETIME_S)
    assert file.read_text().startswith("ey") and stat.S_IMODE(file.stat().st_mode) == 0o600
    left_s = client.status().token_expires_in_s
    assert left_s is not None and left_s > LIFETIME_S / 2

    seen = site.server.log() + client.log() + other.log() + site.audit.read_text() + repr(client.status())
    secrets = [token.partition("_")[2], *first.split(".")[1:], *file.read_text().strip().split(".")[1:]]
    assert not any(secret in seen for secret in secrets)


def test_a_machine_that_was_away_for_too_long_is_told_to_enrol_again(make_lab: type[Lab]) -> None:
    lab = make_lab("none")
    site = Site(lab)
    site.server.settings["enrolment_lifetime_s"] = 30
    client, file = site.machine(1, site.token())
    site.server.start()
    client.start()
    client.wait_ready(60)
    wait_until(lambda: file.read_text().startswith("ey"), "the credential", 10)
    gone(lab, client)
    until = time.monotonic() + 31
    wait_until(lambda: time.monotonic() > until, "the credential's end", 60)
    client.start()
    wait_until(lambda: "have it enrolled with a new token" in sentence(client), "the words", 30)
    assert not crosses(lab)

    # A new token in the same file is all that it takes; the daemon goes on.
    file.write_text(site.token())
    client.wait_ready(90)
    assert crosses(lab)
    wait_until(lambda: file.read_text().startswith("ey"), "the new credential", 10)

    # The identity can be revoked as any other.
    deny = site.directory / "deny.txt"
    lab.seed.run([program("rhizome-agent"), "revoke", NODE, "--deny-file", str(deny)])
    site.server.stop()
    site.server.settings["deny_file"] = str(deny)
    site.server.start()
    wait_until(lambda: "was revoked" in sentence(client), "the client knowing it", 60)
    assert not crosses(lab)
