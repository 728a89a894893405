"""The PKI for people without one: what it issues works in OpenSSL, and what it must not do it does not."""

from __future__ import annotations

import datetime as dt
import ssl
import stat
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from agent import pki
from agent.errors import RhizomeError
from agent.identity import Role

NOW = dt.datetime(2031, 5, 6, 7, 8, 9, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    pki.make_ca(tmp_path / "pki", "shoot--garden--a", now=NOW)
    return tmp_path / "pki"


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def alternatives(path: Path) -> x509.SubjectAlternativeName:
    return certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def purposes(path: Path) -> list[x509.ObjectIdentifier]:
    return list(certificate(path).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_a_server_certificate(directory: Path) -> None:
    issued = pki.issue(
        directory,
        Role.SEED_SERVER,
        dns=["vpn.example"],
        ips=[ip_address("192.0.2.1"), ip_address("2001:db8::1")],
        now=NOW,
    )
    assert issued.identity == "spiffe://shoot--garden--a/seed-server"
    assert issued.certificate.name == "server.crt"
    names = alternatives(issued.certificate)
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [issued.identity]
    assert names.get_values_for_type(x509.DNSName) == ["vpn.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "2001:db8::1"]
    assert purposes(issued.certificate) == [ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize(
    ("role", "stem"), [(Role.SHOOT_CLIENT, "client-node-1.example"), (Role.SIDECAR, "sidecar-node-1.example")]
)
def test_a_client_certificate(directory: Path, role: Role, stem: str) -> None:
    issued = pki.issue(directory, role, "node-1.example", now=NOW)
    assert (issued.certificate.name, issued.key.name) == (f"{stem}.crt", f"{stem}.key")
    assert alternatives(issued.certificate).get_values_for_type(x509.UniformResourceIdentifier) == [
        f"spiffe://shoot--garden--a/{role.value}/node-1.example"
    ]
    assert purposes(issued.certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_an_independent_verifier_accepts_the_chain_for_its_purpose_only(directory: Path) -> None:
    """`cryptography`'s verifier follows the CA/Browser profile of RFC 5280, stricter than OpenSSL."""
    builder = PolicyBuilder().store(Store([certificate(directory / "ca.crt")])).time(NOW)
    server = certificate(pki.issue(directory, Role.SEED_SERVER, dns=["vpn.example"], now=NOW).certificate)
    client = certificate(pki.issue(directory, Role.SHOOT_CLIENT, "node-1", now=NOW).certificate)
    assert builder.build_server_verifier(x509.DNSName("vpn.example")).verify(server, [])
    assert builder.build_client_verifier().verify(client, []).chain
    with pytest.raises(x509.verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("other.example")).verify(server, [])
    with pytest.raises(x509.verification.VerificationError):
        builder.build_client_verifier().verify(server, [])


def handshake(server: pki.Issued, client: pki.Issued, name: str = "vpn.example") -> list[object]:
    """TLS in memory with mutual authentication; returns the names in the client's certificate as the server sees them."""
    s = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    s.verify_mode = ssl.CERT_REQUIRED
    c = ssl.create_default_context(cafile=client.files.ca)
    for context, issued in ((s, server), (c, client)):
        context.load_verify_locations(issued.files.ca)
        context.load_cert_chain(issued.files.certificate, issued.files.key)
    pipes = [ssl.MemoryBIO() for _ in range(2)]
    ends = [s.wrap_bio(pipes[0], pipes[1], server_side=True), c.wrap_bio(pipes[1], pipes[0], server_hostname=name)]
    for _ in range(3):
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    seen = ends[0].getpeercert()
    return list(seen["subjectAltName"]) if seen else []


def test_openssl_shakes_hands(tmp_path: Path) -> None:
    pki.make_ca(tmp_path, "a")
    server = pki.issue(tmp_path, Role.SEED_SERVER, dns=["vpn.example"])
    client = pki.issue(tmp_path, Role.SHOOT_CLIENT, "node-1")
    assert ("URI", "spiffe://a/shoot-client/node-1") in handshake(server, client)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, client, "other.example")


def test_openssl_refuses_an_expired_a_foreign_and_a_misused_certificate(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pki.make_ca(tmp_path / name, name)
    server = pki.issue(tmp_path / "a", Role.SEED_SERVER, dns=["vpn.example"])
    client = pki.issue(tmp_path / "a", Role.SHOOT_CLIENT, "node-1")
    old = pki.issue(tmp_path / "a", Role.SHOOT_CLIENT, "old", days=1, now=dt.datetime.now(dt.UTC) - 2 * DAY)
    foreign = pki.issue(tmp_path / "b", Role.SHOOT_CLIENT, "node-1")
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(server, old)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self-signed"):
        handshake(server, pki.Issued(server.ca, foreign.certificate, foreign.key, "", NOW))
    with pytest.raises(
        ssl.SSLCertVerificationError, match=r"unsuitable certificate purpose|unsupported certificate purpose"
    ):
        handshake(server, server)
    with pytest.raises(
        ssl.SSLCertVerificationError, match=r"unsuitable certificate purpose|unsupported certificate purpose"
    ):
        handshake(client, client)


def test_keys_are_private_and_nothing_else_is_left(directory: Path) -> None:
    pki.issue(directory, Role.SEED_SERVER, dns=["vpn.example"], now=NOW)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "server.crt": 0o644, "server.key": 0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_lifetimes(directory: Path) -> None:
    ca = certificate(directory / "ca.crt")
    assert ca.not_valid_after_utc == NOW + 3650 * DAY
    issued = pki.issue(directory, Role.SHOOT_CLIENT, "n", days=7, now=NOW)
    leaf = certificate(issued.certificate)
    assert issued.not_after == leaf.not_valid_after_utc == NOW + 7 * DAY
    assert leaf.not_valid_before_utc == NOW - pki.BACKDATE
    with pytest.raises(ValueError, match="3651 days are longer than the CA lives"):
        pki.issue(directory, Role.SHOOT_CLIENT, "m", days=3651, now=NOW)


def test_nothing_is_overwritten_without_force(directory: Path) -> None:
    before = (directory / "ca.key").read_bytes()
    with pytest.raises(RhizomeError, match=r"ca\.key exists already: add --force"):
        pki.make_ca(directory, "b", now=NOW)
    assert (directory / "ca.key").read_bytes() == before
    pki.make_ca(directory, "b", force=True, now=NOW)
    assert (directory / "ca.key").read_bytes() != before
    assert pki.issue(directory, Role.SEED_SERVER, dns=["x"], now=NOW).identity == "spiffe://b/seed-server"


@pytest.mark.parametrize("name", ["", "Node", "a b", "../ca", "a/b", "x" * 254])
def test_bad_names_write_nothing(directory: Path, name: str) -> None:
    before = sorted(directory.iterdir())
    with pytest.raises(ValueError, match="DNS"):
        pki.issue(directory, Role.SHOOT_CLIENT, name, now=NOW)
    with pytest.raises(ValueError, match="DNS"):
        pki.issue(directory, Role.SEED_SERVER, dns=[name], now=NOW)
    with pytest.raises(ValueError, match="DNS"):
        pki.make_ca(directory / "new", name, now=NOW)
    assert sorted(directory.iterdir()) == before


def test_a_server_without_names_is_refused(directory: Path) -> None:
    with pytest.raises(ValueError, match="at least one DNS name or IP"):
        pki.issue(directory, Role.SEED_SERVER, now=NOW)


def test_the_ca_must_be_there_and_whole(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(RhizomeError, match=r"ca\.crt is missing: make the CA first"):
        pki.issue(tmp_path / "nowhere", Role.SHOOT_CLIENT, "n")
    other = pki.make_ca(tmp_path / "other", "b")
    (directory / "ca.key").write_bytes(other.key.read_bytes())
    with pytest.raises(RhizomeError, match="not the key of ca"):
        pki.issue(directory, Role.SHOOT_CLIENT, "n", now=NOW)
    (directory / "ca.key").write_text("c2VjcmV0")
    with pytest.raises(RhizomeError, match="not unencrypted PEM") as caught:
        pki.issue(directory, Role.SHOOT_CLIENT, "n", now=NOW)
    assert "c2VjcmV0" not in str(caught.value)


def test_a_ca_of_somebody_else_names_no_control_plane(directory: Path) -> None:
    pki.issue(directory, Role.SHOOT_CLIENT, "n", now=NOW)
    for suffix in ("crt", "key"):
        (directory / f"ca.{suffix}").write_bytes((directory / f"client-n.{suffix}").read_bytes())
    with pytest.raises(RhizomeError, match="names no control plane"):
        pki.issue(directory, Role.SHOOT_CLIENT, "m", now=NOW)
