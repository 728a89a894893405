"""One time means one time: across machines, processes, restarts and broken disks."""

import asyncio
import logging
from pathlib import Path

import pytest

from agent.denylist import DenyList
from agent.enrolment import Line, digest_of, made
from agent.errors import ConfigError
from agent.identity import Identity, Role
from agent.onetime import taken
from seed_server.audit import SCHEMA, Audit, Journal
from seed_server.tokens.desk import AGAIN_S, Desk
from seed_server.tokens.spent import KEPT_S, SpentTokens
from seed_server.tokens.verify import Refused, Verified
from seed_server.warden import Warden

WALL = 1_700_000_000.0
NODE = Identity("a", Role.SHOOT_CLIENT, "edge-1")
TOKEN = made(b"t" * 32)
OURS, THEIRS = taken(TOKEN, b"1" * 16), taken(TOKEN, b"2" * 16)
LINE = Line(digest_of(TOKEN), NODE, WALL + 3600)


class Rig:
    """A server that has just started, with what earlier ones left in the directory."""

    def __init__(self, directory: Path) -> None:
        self.file, self.place = directory / "tokens.txt", directory / "enrolled"
        if not self.file.exists():
            self.file.write_text(f"{LINE}\n")
        self.lines: list[bytes] = []
        self.warden = Warden(lambda: WALL)
        audit = Audit("a", self.lines.append, lambda: WALL, lambda: 0.0)
        spent = SpentTokens(self.place)
        spent.open()
        journal = Journal(logging.getLogger("test"), audit)
        self.desk = Desk(self.file, spent, journal, self.warden, issuer="me", lasts_s=100.0)

    async def show(self, token: str, wall: float = WALL) -> Verified:
        return await self.desk.exchange(token, "192.0.2.1:5", wall)

    async def cause(self, token: str, wall: float = WALL) -> str:
        """Why it is refused; empty when it is good."""
        cause, words = "", ""
        try:
            await self.show(token, wall)
        except Refused as exc:
            cause, words = exc.cause.removeprefix("enrolment_"), str(exc)
        assert not any(part in words for part in filter(None, token.removeprefix("rzt1_").split(".")))
        return cause


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def test_a_token_lets_its_machine_in_once(rig: Rig) -> None:
    verified = await rig.show(OURS)
    assert (verified.identity, verified.ends_at) == (NODE, WALL + 100.0)
    assert verified.ticket == f"one-time {digest_of(OURS)}"
    assert await rig.cause(THEIRS) == "spent"
    with pytest.raises(Refused, match=r"another machine has used it at 2023-11-14T22:13:20Z.*have a new one made"):
        await rig.show(THEIRS)


async def test_it_stays_used_for_the_next_server_and_for_others_beside_it(rig: Rig, tmp_path: Path) -> None:
    assert await rig.cause(OURS) == ""
    assert await Rig(tmp_path).cause(THEIRS) == "spent"


async def test_of_many_at_once_one_is_the_first(tmp_path: Path) -> None:
    servers = [Rig(tmp_path) for _ in range(8)]
    machines = [taken(TOKEN, bytes([n]) * 16) for n in range(8)]
    causes = await asyncio.gather(*(rig.cause(shown) for rig, shown in zip(servers, machines, strict=True)))
    assert sorted(causes) == ["", *["spent"] * 7]


async def test_its_machine_may_ask_again_for_a_while_as_an_answer_may_get_lost(rig: Rig, tmp_path: Path) -> None:
    assert await rig.cause(OURS) == ""
    after = Rig(tmp_path)
    assert await after.cause(OURS, WALL + AGAIN_S) == ""
    assert await after.cause(OURS, WALL + AGAIN_S + 1) == "over"
    assert await after.cause(OURS, WALL - AGAIN_S - 1) == "over", "a clock that is stepped back opens nothing"
    with pytest.raises(Refused, match=r"did not keep what it got: have a new one made"):
        await after.show(OURS, WALL + AGAIN_S + 1)


async def test_it_has_to_be_used_in_time(rig: Rig) -> None:
    assert await rig.cause(OURS, WALL + 3600) == "expired"
    assert await rig.cause(OURS, WALL + 3599) == ""
    assert await rig.cause(OURS, WALL + 3601) == "", "what counts is when it was used first"


async def test_a_token_that_was_taken_back_is_no_good_and_a_new_one_is_at_once(rig: Rig) -> None:
    rig.file.write_text("# none\n")
    assert await rig.cause(OURS) == "unknown"
    rig.file.write_text(f"{LINE}\n")
    assert await rig.cause(OURS) == ""


async def test_a_token_of_somebody_who_is_denied_is_not_used_up(rig: Rig) -> None:
    rig.warden.denied = DenyList(frozenset({str(NODE)}))
    assert await rig.cause(OURS) == "revoked"
    rig.warden.denied = DenyList()
    assert await rig.cause(OURS) == ""


async def test_from_a_list_that_is_gone_or_broken_nobody_enrols(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.file.write_text(f"{LINE}\nnonsense\n")
    assert await rig.cause(OURS) == "unknown" and "line 2" in caplog.text
    rig.file.unlink()
    assert await rig.cause(OURS) == "unknown" and "No such file" in caplog.text
    rig.file.write_text("nonsense\n")
    with pytest.raises(ConfigError, match="line 1"):
        Rig(rig.file.parent)


@pytest.mark.parametrize(
    ("shown", "cause"),
    [
        (TOKEN, "malformed"),
        (OURS[:-1], "malformed"),
        ("rzt1_", "malformed"),
        (taken(made(b"x" * 32), b"1" * 16), "unknown"),
    ],
)
async def test_what_is_no_token_of_this_server(rig: Rig, shown: str, cause: str) -> None:
    assert await rig.cause(shown) == cause
    assert list(rig.place.iterdir()) == [], "a guess leaves nothing on the disk"


async def test_what_cannot_be_written_down_lets_nobody_in(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert await rig.cause(OURS) == "unwritable"
    assert list(rig.place.iterdir()) == []
    assert await rig.cause(OURS) == ""
    (rig.place / LINE.digest).write_text("{")
    assert await rig.cause(OURS) == "unwritable", "a mark that cannot be read says nothing"


async def test_two_machines_with_one_token_are_told_to_somebody_once(rig: Rig) -> None:
    assert await rig.cause(OURS) == ""
    for _ in range(3):
        assert await rig.cause(THEIRS) == "spent"
    assert rig.warden.fence.contested == 1
    text = b"".join(rig.lines).decode()
    assert text.count('"event":"enrolment.spent"') == 1 and text.count('"event":"enrolment.refused"') == 3
    assert '"reason":"spent"' in text and f'"identity":"{NODE}"' in text and f'"token":"{LINE.id}"' in text
    assert TOKEN.partition("_")[2] not in text and {"enrolment.spent", "enrolment.refused"} <= SCHEMA.keys()


async def test_old_marks_go_once_their_tokens_are_out_of_the_list(rig: Rig) -> None:
    spent = SpentTokens(rig.place)
    assert await rig.cause(OURS) == ""
    late = WALL + 3600 + KEPT_S + 1
    await spent.forget(late, {LINE.digest})
    assert await spent.get(LINE.digest) is not None, "or a clock that is stepped back would let it be used again"
    await spent.forget(late - 2, set())
    assert await spent.get(LINE.digest) is not None
    await spent.forget(late, set())
    assert await spent.get(LINE.digest) is None


def test_without_a_place_that_can_be_written_to_there_is_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    with monkeypatch.context() as plain:
        plain.setattr("os.link", fail)  # as on FAT
        with pytest.raises(ConfigError, match=r"enrolment_dir: cannot write to .*: Operation not permitted"):
            SpentTokens(tmp_path / "enrolled").open()
    with pytest.raises(ConfigError, match=r"enrolment_dir: cannot write to .* need a place that outlives this process"):
        SpentTokens(tmp_path / "missing" / "enrolled").open()
