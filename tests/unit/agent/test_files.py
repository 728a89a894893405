"""Files that are replaced as a whole."""

import stat
from pathlib import Path

import pytest

from agent.errors import HostError
from agent.files import edit, stamp, write_atomically


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "key"
    target.write_text("old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, b"new", 0o600)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    target = tmp_path / "key"
    target.write_text("old")
    target.chmod(0o644)
    before = stamp(target), target.stat().st_ino
    write_atomically(target, b"new", 0o600)
    assert target.read_bytes() == b"new" and stat.S_IMODE(target.stat().st_mode) == 0o600
    assert before[0] != stamp(target) and before[1] != target.stat().st_ino


def test_an_edit_makes_the_file_and_keeps_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "list"
    assert edit(target, lambda text: text + "a", 0o600)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    target.chmod(0o640)
    assert edit(target, lambda text: text + "b", 0o600) and target.read_text() == "ab"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert not edit(target, lambda text: text, 0o600)
    with pytest.raises(HostError, match="cannot change"):
        edit(tmp_path / "nowhere" / "list", lambda text: text, 0o600)
