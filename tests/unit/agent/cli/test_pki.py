"""`rhizome-agent pki`: from nothing to a working set, and words for what cannot be."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509

from agent.__main__ import main


@pytest.fixture(autouse=True)
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_whole_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pki", "init", "--control-plane", "shoot--garden--a"]) == 0
    assert "wrote pki/ca.key (private: only its owner may read it)" in capsys.readouterr().out
    assert main(["pki", "server", "--dns", "vpn.example", "--ip", "192.0.2.1"]) == 0
    out = capsys.readouterr().out
    assert "identity spiffe://shoot--garden--a/seed-server, valid until 20" in out
    assert "use: --tls-ca pki/ca.crt --tls-certificate pki/server.crt --tls-key pki/server.key" in out
    assert main(["pki", "client", "--name", "node-1", "--days", "7"]) == 0
    assert main(["pki", "sidecar", "--name", "apiserver-0"]) == 0
    keys = sorted(Path("pki").glob("*.key"))
    assert [key.name for key in keys] == ["ca.key", "client-node-1.key", "server.key", "sidecar-apiserver-0.key"]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    leaf = x509.load_pem_x509_certificate(Path("pki/client-node-1.crt").read_bytes())
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days == 7


def test_nothing_secret_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["pki", "init", "--control-plane", "a"])
    main(["pki", "client", "--name", "n"])
    said = capsys.readouterr()
    for key in Path("pki").glob("*.key"):
        for line in key.read_text().splitlines():
            assert line not in said.out + said.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["pki"], 2, "WHAT"),
        (["pki", "init"], 2, "--control-plane"),
        (["pki", "init", "--control-plane", "A"], 2, "pki init: a DNS label has only"),
        (["pki", "init", "--control-plane", "a", "--days", "-1"], 2, "-1 days: not in 1..36500"),
        (["pki", "init", "--control-plane", "b"], 1, "pki/ca.key exists already: add --force"),
        (["pki", "server"], 2, "at least one DNS name or IP address"),
        (["pki", "server", "--ip", "1.2.3"], 2, "'1.2.3' does not appear to be"),
        (["pki", "server", "--dns", "*.example"], 2, "a DNS label has only"),
        (["pki", "client", "--name", "../x"], 2, "DNS label"),
        (["pki", "client", "--name", "n", "--days", "0"], 2, "0 days: not in 1..36500"),
        (["pki", "client", "--name", "n", "--days", "9999"], 2, "longer than the CA lives"),
        (["pki", "client", "--name", "n", "--days", "9999999999"], 2, "not in 1..36500"),
        (["pki", "client", "--name", "n", "--dir", "nowhere"], 1, "make the CA first with `rhizome-agent pki init`"),
    ],
)
def test_what_cannot_be(words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pki", "init", "--control-plane", "a"])
    assert main(words) == code
    assert message in capsys.readouterr().err


def test_force_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    main(["pki", "init", "--control-plane", "a"])
    assert main(["pki", "init", "--control-plane", "b", "--force"]) == 0
    assert "spiffe://b," in capsys.readouterr().out
