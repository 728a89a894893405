"""Certificate files that change, are torn, or belong to nobody, as a running process meets them."""

import logging
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from agent.carrier.api import TlsFiles
from agent.carrier.tls import Credentials, client_failure, refusal_of_us, server_failure
from agent.errors import ConfigError
from lab.loopback import Pki


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    return Pki(tmp_path).client()


def test_the_context_is_kept_while_the_files_stay(files: TlsFiles) -> None:
    credentials = Credentials(files, server_side=False)
    assert credentials.context() is credentials.context()
    assert not credentials.refresh()


def test_changed_files_make_a_new_context(files: TlsFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    credentials = Credentials(files, server_side=True)
    before = credentials.context()
    again = Pki(tmp_path / "again").client()
    Path(files.certificate).write_bytes(Path(again.certificate).read_bytes())
    Path(files.key).write_bytes(Path(again.key).read_bytes())
    with caplog.at_level(logging.INFO):
        assert credentials.refresh()
    assert credentials.context() is not before
    assert "read again" in caplog.text


def test_a_torn_change_keeps_the_last_good_context_and_says_so_once(
    files: TlsFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    credentials = Credentials(files, server_side=True)
    before = credentials.context()
    Path(files.key).write_bytes(Path(Pki(tmp_path / "again").client().key).read_bytes())
    for _ in range(3):
        assert credentials.context() is before
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"keeping the last good certificate: {files.key} is not the key of {files.certificate}"]


def test_a_file_that_is_gone_for_a_moment_changes_nothing(files: TlsFiles) -> None:
    credentials = Credentials(files, server_side=False)
    before = credentials.context()
    ca = Path(files.ca).read_bytes()
    Path(files.ca).unlink()
    assert credentials.context() is before
    Path(files.ca).write_bytes(ca)
    assert credentials.refresh()


def test_files_that_come_late_are_taken(files: TlsFiles, tmp_path: Path) -> None:
    late = TlsFiles(files.ca, str(tmp_path / "late.crt"), files.key)
    credentials = Credentials(late, server_side=False)
    with pytest.raises(ConfigError, match=r"cannot read .*late\.crt: No such file"):
        credentials.context()
    Path(late.certificate).write_bytes(Path(files.certificate).read_bytes())
    assert credentials.refresh()
    credentials.context()


def spoil_ca(files: TlsFiles) -> None:
    Path(files.ca).write_text("nothing")


def spoil_certificate(files: TlsFiles) -> None:
    Path(files.certificate).write_text("nothing")


def encrypt_key(files: TlsFiles) -> None:
    key = serialization.load_pem_private_key(Path(files.key).read_bytes(), None)
    cipher = serialization.BestAvailableEncryption(b"secret")
    Path(files.key).write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher)
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_ca, r"ca\.crt: no CA certificate in PEM format"),
        (spoil_certificate, "not a certificate and its key in PEM format"),
        (encrypt_key, "the private key is encrypted"),
    ],
)
def test_unusable_files_are_named(files: TlsFiles, spoil: object, words: str) -> None:
    assert callable(spoil)
    spoil(files)
    with pytest.raises(ConfigError, match=words):
        Credentials(files, server_side=True).context()


def test_contexts_speak_tls_1_3_only_and_verify(files: TlsFiles) -> None:
    for server_side in (True, False):
        context = Credentials(files, server_side=server_side).context()
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname is not server_side


def error(reason: str) -> ssl.SSLError:
    exc = ssl.SSLError(1, reason)
    exc.reason = reason
    return exc


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("TLSV1_ALERT_UNKNOWN_CA", "unknown_ca"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "expired"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "no_certificate"),
        ("SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", "purpose"),
        ("SSLV3_ALERT_BAD_CERTIFICATE", "bad_certificate"),
    ],
)
def test_alerts_about_our_certificate(reason: str, cause: str) -> None:
    failure = refusal_of_us(error(reason))
    assert failure is not None
    assert (failure.cause, failure.final) == (cause, True)
    assert failure.words.startswith("the other side refused our certificate: ")
    assert server_failure(error(reason)).cause == "refused_us"


@pytest.mark.parametrize(
    ("exc", "cause", "final"),
    [
        (ConnectionResetError(), "closed", False),
        (ssl.SSLEOFError(), "closed", False),
        (error("WRONG_VERSION_NUMBER"), "not_tls", True),
        (error("TLSV1_ALERT_PROTOCOL_VERSION"), "tls_version", True),
        (error("TLSV1_UNRECOGNIZED_NAME"), "unknown_name", True),
        (error("INTERNAL_ERROR"), "tls", False),
        (OSError(113, "No route to host"), "tls", False),
    ],
)
def test_other_failures_of_a_client(exc: OSError, cause: str, final: bool) -> None:
    failure = client_failure(exc, "seed.test", "ca.crt")
    assert (failure.cause, failure.final) == (cause, final)
    assert refusal_of_us(exc) is None
