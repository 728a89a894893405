"""New certificates for old ones in a directory of `agent.pki`, so that no tunnel drops on the way.

Daemons read their files again when they change. What has to be kept is an order: first everybody trusts both CAs
(`new_ca`), then everybody gets a certificate of the new one (`renew`), then nobody trusts the old one any more (`retire_ca`).
"""

from __future__ import annotations

import datetime as dt
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agent.errors import RhizomeError
from agent.files import write_atomically
from agent.identity import Identity
from agent.pki import BACKDATE, CA_DAYS, Issued, control_plane_of, issue, load_ca, make_ca

#: A certificate is due when less than this share of its lifetime is left: time for two more tries, days apart.
DUE_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class Found:
    """A certificate that was issued here, and what it says."""

    path: Path
    certificate: x509.Certificate
    identity: Identity

    def is_due(self, now: dt.datetime) -> bool:
        return _is_due(self.certificate, now)

    @property
    def days(self) -> int:
        """What it was issued for."""
        lifetime = self.certificate.not_valid_after_utc - self.certificate.not_valid_before_utc - BACKDATE
        return max(1, round(lifetime / dt.timedelta(days=1)))


def new_ca(directory: Path, *, days: int = CA_DAYS, now: dt.datetime | None = None) -> Issued:
    """Make a new CA. `ca.crt` has it first and the old ones after it, so that certificates of all are trusted; only the new one
    issues from now on, as the old key is gone. Raises RhizomeError, ValueError."""
    certificate, _ = load_ca(directory)
    old = [ca for ca in _cas(directory) if ca.not_valid_after_utc > (now or dt.datetime.now(dt.UTC))]
    with tempfile.TemporaryDirectory(dir=directory, prefix=".new-ca.") as aside:
        made = make_ca(Path(aside), control_plane_of(certificate, directory), days=days, now=now)
        bundle = b"".join([made.certificate.read_bytes(), *map(_pem, old)])
        try:
            write_atomically(directory / "ca.key", made.key.read_bytes(), 0o600)
            write_atomically(directory / "ca.crt", bundle, 0o644)
        except OSError as exc:
            raise RhizomeError(f"cannot write to {directory}: {exc.strerror}") from exc
    return Issued(directory / "ca.crt", directory / "ca.crt", directory / "ca.key", made.identity, made.not_after)


def renew(directory: Path, *, everything: bool = False, now: dt.datetime | None = None) -> list[Issued]:
    """Issue again, with a new key and the same names and lifetime, what is due or comes from an older CA, or all.

    No certificate outlives the CA. Raises RhizomeError for a missing CA, ValueError.
    """
    now = now or dt.datetime.now(dt.UTC)
    ca, _ = load_ca(directory)
    days_left = (ca.not_valid_after_utc - now).days
    issued = []
    for found in certificates(directory):
        if everything or found.is_due(now) or not is_issued_by(found.certificate, ca):
            names = found.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            dns, ips = names.get_values_for_type(x509.DNSName), names.get_values_for_type(x509.IPAddress)
            addresses = [ip for ip in ips if not hasattr(ip, "prefixlen")]
            role, name = found.identity.role, found.identity.name
            days = min(found.days, days_left)
            issued.append(issue(directory, role, name, dns=dns, ips=addresses, days=days, force=True, now=now))
    return issued


def retire_ca(directory: Path) -> int:
    """Trust only the CA that issues; how many others were in `ca.crt`. Raises RhizomeError while one of them is needed."""
    ca, *others = _cas(directory)
    load_ca(directory)
    for found in certificates(directory):
        if not is_issued_by(found.certificate, ca):
            raise RhizomeError(
                f"{found.path} is of an older CA and would not be trusted any more: `rhizome-agent pki renew` first, and wait until "
                "everybody has the new files"
            )
    if others:
        try:
            write_atomically(directory / "ca.crt", _pem(ca), 0o644)
        except OSError as exc:
            raise RhizomeError(f"cannot write to {directory}: {exc.strerror}") from exc
    return len(others)


def ca_is_due(directory: Path, now: dt.datetime) -> bool:
    """Whether it is time for a new CA. Raises RhizomeError."""
    return _is_due(load_ca(directory)[0], now)


def certificates(directory: Path) -> list[Found]:
    """What was issued in this directory, sorted by file; other files are left alone. Raises RhizomeError."""
    found = []
    for path in sorted(directory.glob("*.crt")):
        if path.name == "ca.crt" or not path.with_suffix(".key").exists():
            continue
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
            found.append(Found(path, certificate, Identity.parse(uri)))
        except OSError as exc:
            raise RhizomeError(f"cannot read {path}: {exc.strerror}") from exc
        except (ValueError, x509.ExtensionNotFound):
            continue
    return found


def is_issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """By the key of this CA: CAs of one control plane have one name."""
    try:
        certificate.verify_directly_issued_by(ca)
    except Exception:  # ValueError, TypeError and InvalidSignature, and nothing but a no is in them
        return False
    return True


def _is_due(certificate: x509.Certificate, now: dt.datetime) -> bool:
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - now < lifetime * DUE_SHARE


def _cas(directory: Path) -> list[x509.Certificate]:
    path = directory / "ca.crt"
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as exc:
        raise RhizomeError(f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise RhizomeError(f"{path}: no certificate in PEM format in there") from exc


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
