"""The audit log: every line is of the schema, the schema is the page, nothing floods it, no secret is in it."""

import json
import logging
import re
from pathlib import Path

import pytest

from agent.identity import Identity, Role
from seed_server import audit
from seed_server.audit import BURST, COMMON, SCHEMA, Audit, AuditFile, Journal, markdown

ROOT = Path(__file__).parents[3]
NODE = Identity("a", Role.SHOOT_CLIENT, "n1")


class Drawer:
    """Keeps lines; its clock is moved by the test."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.now = 100.0
        self.audit = Audit("a", self.lines.append, lambda: 1_700_000_000.25, lambda: self.now)

    def read(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines]


def test_the_page_is_the_schema() -> None:
    assert (ROOT / "docs/audit.md").read_text() == markdown(), "run `make docs`"


def test_a_line() -> None:
    drawer = Drawer()
    drawer.audit.record("stream.up", "stream up", NODE, stream=7, address="192.0.2.1:5")
    (line,) = drawer.read()
    assert line == {
        "ts": "2023-11-14T22:13:20.250Z",
        "event": "stream.up",
        "outcome": "allowed",
        "control_plane": "a",
        "text": "stream up",
        "identity": str(NODE),
        "stream": 7,
        "address": "192.0.2.1:5",
    }
    assert drawer.lines[0].count(b"\n") == 1 and drawer.lines[0].endswith(b"\n")


@pytest.mark.parametrize("event", SCHEMA)
def test_every_event_has_only_fields_that_are_documented(event: str) -> None:
    drawer = Drawer()
    drawer.audit.record(event, "x", NODE, **dict.fromkeys(SCHEMA[event].fields, "v"))
    (line,) = drawer.read()
    assert line.keys() <= COMMON.keys() | set(SCHEMA[event].fields)
    with pytest.raises(ValueError, match="has no private_key"):
        drawer.audit.record(event, "x", NODE, private_key="v")


def test_every_event_of_the_code_is_in_the_schema_and_the_other_way_round() -> None:
    text = "".join(path.read_text() for path in (ROOT / "seed_server").rglob("*.py") if path.name != "audit.py")
    assert set(re.findall(r"journal\.note\(\s*logging\.\w+,\s*\"([a-z._]+)\"", text)) == set(SCHEMA)


def test_an_unknown_event_is_a_bug() -> None:
    with pytest.raises(KeyError):
        Drawer().audit.record("stream.sideways", "x")


def test_a_flood_of_one_leaves_room_for_others_and_is_counted() -> None:
    drawer = Drawer()
    for _ in range(BURST + 500):
        drawer.audit.record("stream.up", "x", NODE, stream=1)
    assert len(drawer.lines) == BURST
    drawer.audit.record("stream.down", "x", NODE, stream=1)
    drawer.audit.record("stream.up", "x", Identity("a", Role.SHOOT_CLIENT, "n2"), stream=2)
    assert len(drawer.lines) == BURST + 2
    drawer.now += 1.0
    drawer.audit.record("stream.up", "x", NODE, stream=1)
    assert drawer.read()[-1]["suppressed"] == 500
    drawer.now += 3600.0
    drawer.audit.record("stream.up", "x", NODE, stream=1)
    assert "suppressed" not in drawer.read()[-1]


def test_identities_without_end_need_no_memory_without_end() -> None:
    drawer = Drawer()
    for n in range(3000):
        drawer.audit.record("stream.up", "x", Identity("a", Role.SHOOT_CLIENT, f"n{n}"))
    assert len(drawer.audit._buckets) == audit._KEYS_MAX


def test_words_of_strangers_are_redacted_and_stay_on_their_line() -> None:
    drawer = Drawer()
    token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJub2RlLTEifQ.c2lnbmF0dXJl"
    key = "cHJpdmF0ZSBrZXkgb2Ygc29tZWJvZHkgdGhhdCBsZWE="
    drawer.audit.record("stream.down", f"PrivateKey = {key}\nAuthorization: Bearer {token}", NODE, reason=token)
    assert drawer.lines[0].count(b"\n") == 1
    for part in (key, *token.split(".")[1:]):
        assert part.encode() not in drawer.lines[0]


def test_a_journal_writes_into_both(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    drawer = Drawer()
    log = logging.getLogger("rhizome.test")
    Journal(log, drawer.audit).note(logging.INFO, "client.lost", "n1 is lost", NODE, reason="silent")
    Journal(log).note(logging.INFO, "client.lost", "n2 is lost", NODE, reason="silent")
    assert [line["text"] for line in drawer.read()] == ["n1 is lost"]
    assert [(r.message, vars(r)["event"], vars(r)["peer"]) for r in caplog.records] == [
        ("n1 is lost", "client.lost", "n1"),
        ("n2 is lost", "client.lost", "n1"),
    ]


def test_a_file_that_is_moved_away_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit.log"
    file = AuditFile(path)
    file.write(b"1\n")
    path.rename(tmp_path / "audit.log.1")
    file.write(b"2\n")
    assert (tmp_path / "audit.log.1").read_bytes() == b"1\n" and path.read_bytes() == b"2\n"
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    tmp_path.joinpath("audit.log").mkdir()
    file.write(b"3\n")
    file.write(b"4\n")
    assert caplog.text.count("cannot write to") == 1
    with pytest.raises(FileNotFoundError):
        AuditFile(tmp_path / "nowhere" / "audit.log")
    path.rmdir()
    file.write(b"5\n")
    assert path.read_bytes() == b"5\n"
    file.close()
