"""Certificates for people without a PKI: one CA per control plane, and what it issues.

A directory holds `ca.crt`, `ca.key` and a pair per identity (`server`, `client-<name>`, `sidecar-<name>`). Keys are
P-256, PKCS #8, mode 0600, and appear whole or not at all. The CA's key is only needed to issue: keep it elsewhere.
Certificates follow RFC 5280 and the X.509-SVID specification (one URI SAN; CA:FALSE; digitalSignature).
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.carrier.api import TlsFiles
from agent.errors import RhizomeError
from agent.files import write_atomically
from agent.identity import LABEL_MAX, SCHEME, Identity, Role, dns_label, dns_name
from agent.model import IPAddress

CA_DAYS = 3650
LEAF_DAYS = 365
DAYS_MAX = 36500
#: Certificates are valid from this long before they are made: the other side's clock may be behind.
BACKDATE = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Issued:
    """Files that were written. `identity` is the URI SAN, for a CA its trust domain."""

    ca: Path
    certificate: Path
    key: Path
    identity: str
    not_after: dt.datetime

    @property
    def files(self) -> TlsFiles:
        """The same as a carrier's configuration wants them."""
        return TlsFiles(ca=str(self.ca), certificate=str(self.certificate), key=str(self.key))


def make_ca(
    directory: Path,
    control_plane: str,
    *,
    days: int = CA_DAYS,
    force: bool = False,
    now: dt.datetime | None = None,
) -> Issued:
    """Make the CA of a control plane. Raises ValueError for a bad name, RhizomeError when there is one already."""
    dns_label(control_plane)
    _check_days(days)
    start = now or dt.datetime.now(dt.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Rhizome CA", control_plane)
    usage = _key_usage(ca=True)
    certificate = (
        _builder(name, name, key.public_key(), start, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SCHEME + control_plane)]), False)
        .sign(key, hashes.SHA256())
    )
    return _write_pair(directory, "ca", SCHEME + control_plane, certificate, key, force)


def issue(
    directory: Path,
    role: Role,
    name: str = "",
    *,
    dns: Iterable[str] = (),
    ips: Iterable[IPAddress] = (),
    days: int = LEAF_DAYS,
    force: bool = False,
    now: dt.datetime | None = None,
) -> Issued:
    """Issue a certificate under the CA in `directory`; its control plane becomes the trust domain.

    A server needs at least one name or address: it is what its clients check. `days` may not outlive the CA.
    Raises ValueError for names that break a rule, RhizomeError for a missing CA or existing files.
    """
    _check_days(days)
    start = now or dt.datetime.now(dt.UTC)
    ca_certificate, ca_key = load_ca(directory)
    identity = Identity(control_plane_of(ca_certificate, directory), role, name)
    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
    alternatives += [x509.DNSName(dns_name(text)) for text in dns]
    alternatives += [x509.IPAddress(address) for address in ips]
    server = role is Role.SEED_SERVER
    if server and len(alternatives) == 1:
        raise ValueError("a server certificate needs at least one DNS name or IP address that clients will dial")
    if start + dt.timedelta(days=days) > ca_certificate.not_valid_after_utc:
        raise ValueError(
            f"{days} days are longer than the CA lives (until {ca_certificate.not_valid_after_utc:%Y-%m-%d})"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(
            _name(f"Rhizome {role.value}", name or identity.control_plane),
            ca_certificate.subject,
            key.public_key(),
            start,
            days,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return _write_pair(directory, _stem(role, name), str(identity), certificate, key, force)


def _check_days(days: int) -> None:
    if not 1 <= days <= DAYS_MAX:
        raise ValueError(f"{days} days: not in 1..{DAYS_MAX}")


def _stem(role: Role, name: str) -> str:
    return {Role.SEED_SERVER: "server", Role.SHOOT_CLIENT: f"client-{name}", Role.SIDECAR: f"sidecar-{name}"}[role]


def _name(organizational_unit: str, common_name: str) -> x509.Name:
    # X.520 gives a common name 64 characters; the identity is the URI SAN, this is for people.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, organizational_unit),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[: LABEL_MAX + 1]),
        ]
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - BACKDATE)
        .not_valid_after(start + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def load_ca(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The CA that issues: the first in `ca.crt`, where others may be trusted after it. Raises RhizomeError."""
    try:
        certificate = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
    except FileNotFoundError as exc:
        raise RhizomeError(f"{exc.filename} is missing: make the CA first with `rhizome-agent pki init`") from exc
    except OSError as exc:
        raise RhizomeError(f"cannot read {exc.filename}: {exc.strerror}") from exc
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise RhizomeError(
            f"{directory}: ca.crt or ca.key is not unencrypted PEM: make the CA again, or fix the file"
        ) from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise RhizomeError(f"{directory}: ca.key is not the key of ca.crt: put the pair that belongs together there")
    return certificate, key


def control_plane_of(ca: x509.Certificate, directory: Path) -> str:
    """Raises RhizomeError."""
    with contextlib.suppress(x509.ExtensionNotFound, ValueError):
        names = ca.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
            if uri.startswith(SCHEME):
                return dns_label(uri[len(SCHEME) :])
    raise RhizomeError(f"{directory / 'ca.crt'} was not made by `rhizome-agent pki init`: it names no control plane")


def _write_pair(
    directory: Path,
    stem: str,
    identity: str,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    force: bool,
) -> Issued:
    issued = Issued(
        ca=directory / "ca.crt",
        certificate=directory / f"{stem}.crt",
        key=directory / f"{stem}.key",
        identity=identity,
        not_after=certificate.not_valid_after_utc,
    )
    existing = [path for path in (issued.key, issued.certificate) if path.exists()]
    if existing and not force:
        raise RhizomeError(f"{existing[0]} exists already: add --force to replace it, or choose another directory")
    pem_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(issued.key, pem_key, 0o600)
        write_atomically(issued.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    except OSError as exc:
        raise RhizomeError(f"cannot write to {directory}: {exc.strerror}") from exc
    return issued
