"""The sidecar's start."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import enrolment
from agent.__main__ import main
from agent.exits import Exit


def test_a_one_time_token_is_not_spent_on_a_sidecar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.sidecar.main.run_daemon", lambda body: pytest.fail("it starts"))
    token = enrolment.made(bytes(enrolment.TOKEN_BYTES))
    (tmp_path / "ca.crt").touch()
    path = tmp_path / "token"
    path.write_text(f"{token}\n")
    words = ["sidecar", "--control-plane", "cp", "--server", "192.0.2.1:443", "--tls-ca", str(tmp_path / "ca.crt")]
    assert main([*words, "--token-file", str(path), "--runtime-dir", str(tmp_path)]) == Exit.USAGE
    said = capsys.readouterr().err
    assert "one-time" in said and "ServiceAccount" in said and token not in said
    assert path.read_text() == f"{token}\n"
