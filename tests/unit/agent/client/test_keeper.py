"""What comes for a one-time token replaces it on the disk, and replaces nothing else."""

import asyncio
import stat
from pathlib import Path

import pytest

from agent.client.keeper import Keeper
from agent.enrolment import digest_of
from agent.messages import Credential

OLD, NEW = "rzt1_old", "eyJ.new.one"
CREDENTIAL = Credential(NEW, digest_of(OLD))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{OLD}\n")
    path.chmod(0o644)
    return path


def test_it_takes_the_place_of_what_the_stream_was_opened_with(file: Path) -> None:
    keeper = Keeper(file)
    asyncio.run(keeper.keep(CREDENTIAL))
    assert file.read_text() == f"{NEW}\n" and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not keeper.trouble and list(file.parent.iterdir()) == [file]
    inode = file.stat().st_ino
    asyncio.run(keeper.keep(CREDENTIAL))
    assert file.stat().st_ino == inode, "once is enough"


def test_another_token_in_the_file_stays(file: Path) -> None:
    file.write_text("rzt1_newer\n")
    keeper = Keeper(file)
    asyncio.run(keeper.keep(CREDENTIAL))
    assert file.read_text() == "rzt1_newer\n" and not keeper.trouble


def test_what_cannot_be_kept_is_said_and_tried_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    aside = file.rename(file.with_name("aside"))
    keeper = Keeper(file)
    asyncio.run(keeper.keep(CREDENTIAL))
    assert "cannot be kept" in keeper.trouble and "No such file" in keeper.trouble
    assert keeper.trouble in caplog.text and NEW not in caplog.text
    aside.rename(file)
    asyncio.run(keeper.retry())
    assert not keeper.trouble and file.read_text() == f"{NEW}\n"
    asyncio.run(keeper.retry())


def test_a_symbolic_link_is_not_followed(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    keeper = Keeper(link)
    asyncio.run(keeper.keep(CREDENTIAL))
    assert "symbolic link" in keeper.trouble and file.read_text() == f"{OLD}\n" and link.is_symlink()
