"""Keys agree with RFC 7748 and with `wg`."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from agent.keys import generate_preshared_key, generate_private_key, public_key
from agent.model import PrivateKey


def test_public_key_is_the_one_of_rfc_7748() -> None:
    # Section 5.2: the first iteration of X25519(9, 9).
    nine = PrivateKey(b"\x09" + bytes(31))
    assert public_key(nine).raw.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"


@pytest.mark.skipif(shutil.which("wg") is None, reason="wireguard-tools is not installed")
def test_public_key_is_that_of_wg() -> None:
    for _ in range(3):
        private = generate_private_key()
        theirs = subprocess.run(["wg", "pubkey"], input=private.reveal(), capture_output=True, text=True, check=True)
        assert str(public_key(private)) == theirs.stdout.strip()


def test_keys_are_clamped_and_never_the_same() -> None:
    keys = {generate_private_key().raw for _ in range(50)}
    assert len(keys) == 50
    assert all(raw[0] & 7 == 0 and raw[31] & 192 == 64 for raw in keys)
    assert len({generate_preshared_key().raw for _ in range(50)}) == 50
