"""WireGuard keys are born here, in memory, and go from here only into a device (RFC 7748, WireGuard whitepaper section 5)."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

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
