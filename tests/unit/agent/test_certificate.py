"""When a token file ends, and for how long it was issued."""

import json
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from agent.certificate import expires_in_s, lifetime_s


def token(**claims: object) -> str:
    header, payload = (
        urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in ({"alg": "ES256"}, claims)
    )
    return f"{header}.{payload}.c2ln"


def test_a_token_says_both(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token(iat=1000, exp=4600))
    assert (expires_in_s(file, 4000.0), lifetime_s(file)) == (600.0, 3600.0)
    assert expires_in_s(file, 5000.0) == -400.0


@pytest.mark.parametrize("text", ["rzt1_" + "A" * 43, "", "eyJ", "ey.ey.ey"])
def test_what_says_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    assert expires_in_s(file, 0.0) is None and lifetime_s(file) is None
    file.write_text(text)
    assert expires_in_s(file, 0.0) is None and lifetime_s(file) is None


def test_a_token_need_not_say_when_it_was_issued(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token(exp=4600))
    assert (expires_in_s(file, 4000.0), lifetime_s(file)) == (600.0, None)
