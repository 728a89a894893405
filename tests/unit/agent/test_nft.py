"""The seal of the nft table, and the program nft when it fails, hangs or is missing. A script plays nft; no root needed.

With the real program and kernel: tests/contract/netstack and tests/netns/test_netlink.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest

from agent import nft
from agent.errors import HostError, Unsupported
from agent.nft import Nft

TEXT = "table inet rhizome {\n\tchain a {\n\t}\n}\n"
LISTING = "table inet rhizome {\n\tchain a {\n\t}\n}\n"


def sealed(listing: str, text: str, of: str | None = None) -> str:
    """`listing` as nft shows it after a seal for `of` (default: this very listing) was added."""
    seal = f'\tchain seal {{\n\t\tcomment "{nft._digest(text)} {nft._digest(nft._substance(of or listing))}"\n\t}}\n'
    return listing.removesuffix("}\n") + "\n" + seal + "}\n"


def test_a_seal_names_the_text() -> None:
    assert nft._sealed(sealed(LISTING, TEXT)) == nft._digest(TEXT)


@pytest.mark.parametrize(
    "listing",
    [
        LISTING,
        sealed(LISTING.replace("chain a", "chain b"), TEXT, of=LISTING),
        sealed(LISTING, TEXT).replace("\tchain a {\n", "\tchain a {\n\t\taccept\n"),
        "",
    ],
    ids=["none", "of another listing", "broken by an edit", "of nothing"],
)
def test_without_a_valid_seal_no_text_is_named(listing: str) -> None:
    assert nft._sealed(listing) == ""


def test_blank_lines_do_not_break_the_seal() -> None:
    assert nft._sealed(sealed(LISTING, TEXT).replace("\t}\n", "\t}\n\n")) == nft._digest(TEXT)


class Program:
    """A script that stands in for nft: it notes its process id and then does what the test wants."""

    def __init__(self, folder: Path) -> None:
        self._script = folder / "nft"
        self._pids = folder / "pids"
        self._script.touch(mode=0o755)

    def does(self, shell: str) -> None:
        self._script.write_text(f"#!/bin/sh\necho $1 $$ >> {self._pids}\n{shell}\n")

    def pids(self, option: str) -> list[int]:
        """Of all calls whose first argument was `option`, oldest first."""
        if not self._pids.exists():
            return []
        return [int(pid) for first, pid in map(str.split, self._pids.read_text().splitlines()) if first == option]

    def runs(self) -> bool:
        return any(Path(f"/proc/{pid}").exists() for pid in self.pids("-f"))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(Nft, "_ask_generation", lambda self: 1)
    monkeypatch.setattr(Nft, "_exists", lambda self: False)
    return Program(tmp_path)


async def test_a_refusal_is_told_in_nfts_first_words(program: Program) -> None:
    program.does("cat >/dev/null; echo '/dev/stdin:3:1: Error: no such chain' >&2; echo '^^^' >&2; exit 1")
    with pytest.raises(HostError, match="no such chain") as caught:
        await Nft(set()).apply(TEXT)
    assert "^^^" not in str(caught.value)


async def test_a_lack_of_privileges_is_told_as_such(program: Program) -> None:
    program.does("cat >/dev/null; echo 'netlink: Operation not permitted' >&2; exit 1")
    with pytest.raises(Unsupported, match="CAP_NET_ADMIN"):
        await Nft(set()).apply(TEXT)


async def test_a_silent_failure_has_at_least_its_exit_code(program: Program) -> None:
    program.does("cat >/dev/null; exit 7")
    with pytest.raises(HostError, match="exit code 7"):
        await Nft(set()).apply(TEXT)


async def test_text_that_makes_another_table_is_an_error(program: Program) -> None:
    program.does("[ $1 != -s ] || { echo 'No such file or directory' >&2; exit 1; }; cat >/dev/null")
    with pytest.raises(HostError, match="does not make a table inet rhizome"):
        await Nft(set()).apply("table inet other {\n}\n")


async def test_a_missing_program_says_what_to_install(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(Unsupported, match="install the package nftables"):
        await Nft(set()).apply(TEXT)


async def test_a_hanging_program_is_killed_after_a_while(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "_TIMEOUT_S", 0.2)
    program.does("exec sleep 60")
    with pytest.raises(HostError, match="no answer"):
        await Nft(set()).apply(TEXT)
    assert len(program.pids("-f")) == 1
    assert not program.runs()


async def test_a_cancelled_call_leaves_no_process(program: Program) -> None:
    program.does("exec sleep 60")
    task = asyncio.ensure_future(Nft(set()).apply(TEXT))
    deadline = time.monotonic() + 5
    while not program.runs():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not program.runs()


async def test_ports_are_the_process_ids_of_the_last_change(program: Program) -> None:
    program.does("[ $1 != -s ] || { echo 'table inet rhizome {'; echo '}'; exit; }; cat >/dev/null")
    ports = {1}
    firewall = Nft(ports)
    await firewall.apply(TEXT)
    await firewall.apply(TEXT + "\n")
    changing = program.pids("-f")
    assert len(changing) == 4
    assert ports == {1, *changing[2:]}
