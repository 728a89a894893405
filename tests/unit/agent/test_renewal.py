"""New certificates for old ones: what is due, both CAs trusted in between, and nothing retired that is still needed."""

from __future__ import annotations

import datetime as dt
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509

from agent import renewal
from agent.__main__ import main
from agent.errors import RhizomeError
from agent.identity import Role
from agent.pki import issue, make_ca

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_ca(tmp_path, "shoot--a--b", days=900)
    issue(tmp_path, Role.SEED_SERVER, dns=["vpn.example"], ips=[ip_address("192.0.2.1")], days=90)
    issue(tmp_path, Role.SHOOT_CLIENT, "node-1", days=30)
    (tmp_path / "other.crt").write_text("not ours")
    return tmp_path


def load(directory: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / name).read_bytes())


def alternatives(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_only_what_is_due_is_issued_again(directory: Path) -> None:
    before = {name: load(directory, name) for name in ("server.crt", "client-node-1.crt")}
    key = (directory / "client-node-1.key").read_bytes()
    assert renewal.renew(directory, now=NOW + 15 * DAY) == []
    (again,) = renewal.renew(directory, now=NOW + 21 * DAY)
    assert again.identity == "spiffe://shoot--a--b/shoot-client/node-1"
    assert load(directory, "server.crt") == before["server.crt"]
    new = load(directory, "client-node-1.crt")
    assert alternatives(new) == alternatives(before["client-node-1.crt"])
    assert new.not_valid_after_utc - before["client-node-1.crt"].not_valid_after_utc == pytest.approx(
        21 * DAY, abs=DAY / 100
    )
    assert (directory / "client-node-1.key").read_bytes() != key
    assert (directory / "client-node-1.key").stat().st_mode & 0o777 == 0o600


def test_everything_is_issued_again_with_all_its_names(directory: Path) -> None:
    before = alternatives(load(directory, "server.crt"))
    assert len(renewal.renew(directory, everything=True)) == 2
    assert alternatives(load(directory, "server.crt")) == before


def test_a_new_ca_is_trusted_beside_the_old_one_until_nobody_needs_that(directory: Path) -> None:
    old = load(directory, "ca.crt")
    renewal.new_ca(directory)
    new, kept = x509.load_pem_x509_certificates((directory / "ca.crt").read_bytes())
    assert kept == old and new.public_key() != old.public_key()
    assert sorted(path.name for path in directory.iterdir() if path.name.startswith(".")) == []
    with pytest.raises(RhizomeError, match=r"client-node-1\.crt is of an older CA .* `rhizome-agent pki renew` first"):
        renewal.retire_ca(directory)
    assert len(renewal.renew(directory)) == 2
    assert renewal.is_issued_by(load(directory, "server.crt"), new)
    assert not renewal.is_issued_by(load(directory, "server.crt"), old)
    assert renewal.retire_ca(directory) == 1
    assert x509.load_pem_x509_certificates((directory / "ca.crt").read_bytes()) == [new]
    assert renewal.retire_ca(directory) == 0


def test_a_third_ca_keeps_those_that_are_still_valid(directory: Path) -> None:
    renewal.new_ca(directory, days=10)
    renewal.new_ca(directory, now=NOW + 20 * DAY)
    cas = x509.load_pem_x509_certificates((directory / "ca.crt").read_bytes())
    assert len(cas) == 2, "the one of ten days has ended"


def test_nothing_outlives_its_ca(directory: Path) -> None:
    now = NOW + 850 * DAY
    renewal.renew(directory, now=now)
    end = load(directory, "ca.crt").not_valid_after_utc
    assert now < load(directory, "server.crt").not_valid_after_utc <= end
    assert renewal.ca_is_due(directory, now) and not renewal.ca_is_due(directory, NOW)


def test_by_command(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--dir", str(directory)]
    assert main(["pki", "renew", *where]) == 0
    assert capsys.readouterr().out == "nothing is due\n"
    assert main(["pki", "new-ca", *where]) == 0
    assert "next: put" in capsys.readouterr().out
    assert main(["pki", "retire-ca", *where]) != 0
    assert "pki renew" in capsys.readouterr().err
    assert main(["pki", "renew", *where]) == 0
    assert capsys.readouterr().out.count("wrote ") == 2
    assert main(["pki", "retire-ca", *where]) == 0
    assert capsys.readouterr().out == "1 older CAs are trusted no more\n"
    assert main(["pki", "renew", "--all", *where]) == 0
    assert main(["pki", "renew", "--dir", str(directory / "nowhere")]) != 0
    assert "rhizome-agent pki init" in capsys.readouterr().err
