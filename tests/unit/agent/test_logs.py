"""Log lines: machine readable, with fixed fields, without secrets, and never more than an outsider should cause."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import logs
from agent.model import PresharedKey, PrivateKey, PublicKey

RAW = bytes(range(200, 232))
SECRET = PrivateKey(RAW)
PSK = PresharedKey(RAW)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Whatever the root logger was is put back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield io.StringIO()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_fixed_fields_first_and_only_those_given(stream: io.StringIO) -> None:
    logs.configure("info", "json", static={"role": "seed-server", "control_plane": "a"}, stream=stream)
    logging.getLogger("rhizome.engine").info(
        "applied %d steps", 3, extra={"steps": 3, "ifname": "rz0", "event": "plan.applied", "reason": None}
    )
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    assert list(line.items()) == [
        ("level", "info"),
        ("event", "plan.applied"),
        ("msg", "applied 3 steps"),
        ("logger", "rhizome.engine"),
        ("role", "seed-server"),
        ("control_plane", "a"),
        ("ifname", "rz0"),
        ("steps", 3),
    ]


def test_one_record_is_one_line_whatever_is_in_it(stream: io.StringIO) -> None:
    logs.configure("debug", "json", stream=stream)
    odd = "two\nlines \u2028 \x00 \udc80 ü"
    try:
        raise ValueError(odd)
    except ValueError:
        logging.getLogger("rhizome.x").exception(
            "%s", odd, extra={"event": "a.b", "peer": odd, "level": 1, "nan": float("nan")}
        )
    (text,) = stream.getvalue().split("\n")[:-1]
    line = json.loads(text)
    assert line["msg"] == odd and line["peer"] == odd
    assert line["error"].endswith(f"ValueError: {odd}")
    assert line["level"] == "error" and line["level_"] == 1 and line["nan"] == "nan"


def test_text_is_for_people(stream: io.StringIO) -> None:
    logs.configure("info", "text", static={"role": "seed-server"}, stream=stream)
    log = logging.getLogger("rhizome.carrier")
    log.debug("not shown")
    log.warning("stream %d ended", 7, extra={"event": "stream.down", "reason": "dead"})
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} WARNING carrier: stream 7 ended  reason=dead\n", stream.getvalue())


def test_libraries_are_quiet(stream: io.StringIO) -> None:
    logs.configure("debug", "json", stream=stream)
    logging.getLogger("asyncio").debug("Using selector: EpollSelector")
    logging.getLogger("pyroute2.netlink").info("noise")
    assert not stream.getvalue()


HEX = RAW.hex()
B64 = PSK.reveal()


@pytest.mark.parametrize("format", ["json", "text"])
@pytest.mark.parametrize(
    "message",
    [
        f"private_key={HEX}\npublic_key=ab",
        f"preshared_key={HEX}",
        f"PrivateKey = {B64}",
        f"PresharedKey={B64}",
        f'{{"preshared_key":"{B64}"}}',
        f"{{'private-key': '{B64}'}}",
        f"private key: {B64}",
        f"-----BEGIN EC PRIVATE KEY-----\n{B64}\n{B64}\n-----END EC PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{B64}",
        f"CONNECT x\r\nProxy-Authorization: Basic {B64}\r\n",
        f"http://user:{HEX}@proxy:3128/",
        f"http://:{HEX}@proxy:3128/",
    ],
)
def test_secrets_of_others_are_cut_out_everywhere(stream: io.StringIO, format: str, message: str) -> None:
    logs.configure("info", format, stream=stream)
    try:
        raise RuntimeError(message)
    except RuntimeError:
        logging.getLogger("rhizome.x").exception("%s", message, extra={"peer": message, "steps": [message]})
    assert HEX not in stream.getvalue() and B64 not in stream.getvalue()
    assert stream.getvalue().count("(hidden)") >= 4


@pytest.mark.parametrize("format", ["json", "text"])
def test_our_own_keys_hide_themselves(stream: io.StringIO, format: str) -> None:
    logs.configure("info", format, stream=stream)
    logging.getLogger("rhizome.x").info("%s %r %s", SECRET, PSK, [SECRET], extra={"peer": SECRET, "steps": (PSK,)})
    for secret in (SECRET.reveal(), SECRET.raw.hex(), repr(SECRET.raw), B64, HEX, repr(RAW)):
        assert secret not in stream.getvalue()


def test_public_keys_may_be_seen() -> None:
    text = (
        f"public_key={PublicKey(RAW)} PublicKey = {PublicKey(RAW)} public key: {PublicKey(RAW)} peer {PublicKey(RAW)}"
    )
    assert logs.redact(text) == text


@settings(deadline=None)
@given(st.text(alphabet="abc:/@= -\n%'\""))
def test_harmless_text_stays(text: str) -> None:
    if "://" not in text:
        assert logs.redact(text) == text


def test_a_flood_is_one_line_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    limited = logs.Limited(logging.getLogger("rhizome.x"), every_s=10, clock=lambda: now)
    for _ in range(1000):
        limited.log(logging.WARNING, "192.0.2.1", "turned away %s", "tls", extra={"event": "stream.refused"})
    limited.log(logging.WARNING, "192.0.2.2", "another key")
    now += 10
    limited.log(logging.WARNING, "192.0.2.1", "turned away %s", "tls")
    seen = [(r.getMessage(), getattr(r, "suppressed", 0)) for r in caplog.records]
    assert seen == [("turned away tls", 0), ("another key", 0), ("turned away tls", 999)]


def test_a_limit_remembers_a_bounded_number_of_keys() -> None:
    limited = logs.Limited(logging.getLogger("rhizome.x"), keys_max=16, clock=lambda: 0.0)
    for number in range(10_000):
        limited.log(logging.DEBUG, str(number), "x")
    assert len(limited._seen) == 16
