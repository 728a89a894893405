"""WireGuard keys are born here, in memory, and go from here only into a device (RFC 7748, WireGuard whitepaper section 5)."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.errors import ConfigError
from agent.model import PresharedKey, PrivateKey, PublicKey


def generate_private_key() -> PrivateKey:
    """A new Curve25519 private key, clamped."""
    return PrivateKey(X25519PrivateKey.generate().private_bytes_raw())


def public_key(private_key: PrivateKey) -> PublicKey:
    """The public key of a private key, as `wg pubkey` computes it."""
    return PublicKey(X25519PrivateKey.from_private_bytes(private_key.raw).public_key().public_bytes_raw())


def generate_preshared_key() -> PresharedKey:
    """32 random bytes, as `wg genpsk` makes them."""
    return PresharedKey(os.urandom(32))


def derive(secret: bytes, *info: str) -> bytes:
    """32 bytes that only the holder of `secret` can make, the same ones each time, for one use that `info` names (RFC 5869)."""
    words = b"\0".join((b"rhizome", *(text.encode() for text in info)))
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=words).derive(secret)


def private_key_bytes(pem: Path) -> bytes:
    """The same bytes for the same private key, however its file is written. Raises ConfigError."""
    try:
        key = serialization.load_pem_private_key(pem.read_bytes(), password=None)
    except OSError as exc:
        raise ConfigError(f"{pem}: {exc.strerror}") from exc
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"{pem}: not an unencrypted private key in PEM") from exc
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
