"""The deny list: what it says, how it is changed, and that nothing lifts it by accident."""

import asyncio
from pathlib import Path

import pytest

from agent import denyfile
from agent.__main__ import COMMANDS, PROGRAM
from agent.cli.program import Program
from agent.denyfile import change, read, watch
from agent.denylist import DenyList, added, entry, parse, removed
from agent.errors import ConfigError, HostError
from agent.identity import Identity, Role
from agent.model import PublicKey
from agent.run import spawn

NODE = Identity("a", Role.SHOOT_CLIENT, "node-1")
KEY = PublicKey(bytes(range(32)))


def test_what_a_list_says() -> None:
    denied = parse(f"# people\n\n  {NODE}  2026 stolen {KEY}\n{KEY} \n")
    assert denied == DenyList(frozenset({str(NODE)}), frozenset({KEY}))
    assert len(denied) == 2
    other = Identity("a", Role.SHOOT_CLIENT, "node-10")
    assert denied.denies(NODE) and not denied.denies(other)
    assert denied.denies(other, [KEY]) and not denied.denies(other, [PublicKey(bytes(32))])


@pytest.mark.parametrize("text", ["node-1", "spiffe://a/seed-server/x", "spiffe://a/shoot-client/*", "AAAA", "x" * 44])
def test_a_list_of_which_a_part_is_not_understood_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="line 2: "):
        parse(f"{NODE}\n{text}\n")
    with pytest.raises(ValueError, match=r"\S"):
        entry(text)


def test_an_entry_comes_and_goes_and_the_rest_stays() -> None:
    text = "# mine\nspiffe://a/sidecar/x"
    longer = added(text, str(NODE), "2026 why\nspiffe://a/sidecar/smuggled")
    assert longer == f"# mine\nspiffe://a/sidecar/x\n{NODE} 2026 why spiffe://a/sidecar/smuggled\n"
    assert added(longer, str(NODE), "again") == longer
    assert removed(longer, str(NODE)) == "# mine\nspiffe://a/sidecar/x\n"


def test_the_command_changes_the_file_in_one_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def revoke(*words: str) -> str:
        assert Program(PROGRAM, "", COMMANDS).dispatch(["revoke", *words, "--deny-file", str(link)]) == 0
        return capsys.readouterr().out

    target, link = tmp_path / "real.txt", tmp_path / "deny.txt"
    link.symlink_to(target)
    assert "is denied; seed servers" in revoke(str(NODE), "--reason", "stolen")
    assert read(link).denies(NODE) and link.is_symlink() and "stolen" in target.read_text()
    before = target.stat().st_ino
    assert "was denied already" in revoke(str(NODE))
    assert target.stat().st_ino == before
    assert f"{KEY} is denied" in revoke(str(KEY))
    assert target.stat().st_ino != before, "replaced, not written into"
    assert "is let in again" in revoke(str(NODE), "--undo")
    assert "was not on the list" in revoke(str(NODE), "--undo")
    assert read(link) == DenyList(keys=frozenset({KEY}))
    with pytest.raises(ConfigError, match="neither an identity"):
        revoke("node-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".real.txt.lock", "deny.txt", "real.txt"]


def test_a_broken_file_is_not_made_worse(tmp_path: Path) -> None:
    path = tmp_path / "deny.txt"
    path.write_text("node-1\n")
    with pytest.raises(ConfigError, match="line 1"):
        change(path, lambda text: added(text, str(NODE), ""))
    assert path.read_text() == "node-1\n"
    with pytest.raises(ConfigError, match="line 1"):
        read(path)
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "missing")
    with pytest.raises(HostError, match="cannot change"):
        change(tmp_path / "nowhere" / "deny.txt", lambda text: text)


async def test_a_file_that_is_gone_or_broken_lets_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(denyfile, "POLL_S", 0.01)
    path, told = tmp_path / "deny.txt", list[DenyList]()
    path.write_text(f"{NODE}\n")
    task = spawn(watch(path, told.append), name="test.watch")

    async def logged(word: str) -> None:
        async with asyncio.timeout(5):
            while word not in caplog.text:
                await asyncio.sleep(0.005)

    await asyncio.sleep(0)
    path.write_text("nonsense\n")
    await logged("line 1")
    path.unlink()
    await logged("No such file")
    assert told == []
    change(path, lambda text: added(text, str(KEY), ""))
    async with asyncio.timeout(5):
        while not told:
            await asyncio.sleep(0.005)
    assert told == [DenyList(keys=frozenset({KEY}))]
    task.cancel()
