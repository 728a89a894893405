"""`rhizome-agent status`: the verdict first, no surprises for the terminal, and an exit code for scripts."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from agent import observability
from agent.__main__ import main
from agent.cli import status as cli
from agent.status import (
    Counters,
    EgressHealth,
    PathHealth,
    PeerHealth,
    PoolHealth,
    RangeHealth,
    RoleStatus,
    Verdict,
    from_json,
)

STATUS = RoleStatus(
    "seed-server",
    "shoot--garden--a",
    "rz-seed",
    Verdict.DEGRADED,
    "the shoot is reached through 1 of 2 clients, but n2 is silent",
    185.0,
    causes=("n2 is silent",),
    version="rhizome 0.1.0",
    epoch="0a1b2c3d",
    backend="userspace",
    backend_reason="no WireGuard in this kernel",
    paths=(PathHealth("stream", "SNI proxy", "up", "", 0.0213, 12.0, 1420, 1_300_000, 512, (("codel", 3),)),),
    peers=(
        PeerHealth("n1", ("192.168.128.2",), ("10.0.0.0/24", "a", "b", "c"), "", 12.0, 0.4, 0.02, 7, 9),
        PeerHealth("n2", refused=("0.0.0.0/0",)),
    ),
    ranges=(RangeHealth("10.0.0.0/16", "node", "n1"), RangeHealth("100.64.0.0/13", "service")),
    counters=Counters(refused=(("default-route", 2),), reconnects=4),
    certificate_expires_in_s=86400.0 * 20,
    grant_expires_in_s=-1.0,
    pools=(PoolHealth("192.168.128.0/17", 104, 3, 1),),
)

TABLE = """\
DEGRADED  seed-server rz-seed of shoot--garden--a: the shoot is reached through 1 of 2 clients, but n2 is silent (for 3m05s)

PATH    STATE  VIA        RTT     HANDSHAKE  MTU   RECEIVED  SENT  DROPPED
stream  up     SNI proxy  21.3ms  12s ago    1420  1.2MiB    512B  codel 3

PEER  CANARY    RTT     HANDSHAKE  ADDRESSES      CARRIES                 RECEIVED  SENT
n1    0.4s ago  20.0ms  12s ago    192.168.128.2  10.0.0.0/24 a b +1      7B        9B
n2    never             never                      (refused: 0.0.0.0/0)   0B        0B

RANGE          KIND     CARRIER
10.0.0.0/16    node     n1
100.64.0.0/13  service  nobody

causes:
  n2 is silent

facts:
  WireGuard: userspace (no WireGuard in this kernel), epoch 0a1b2c3d
  tunnel addresses of 192.168.128.0/17: 3 used, 100 free
  certificate: ends in 20d00h
  grant: has ended
  refused prefixes: default-route 2
  reconnects: 4
  rhizome 0.1.0
"""


def squeeze(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_table() -> None:
    assert squeeze(cli.render(STATUS)) == squeeze(TABLE)


def test_the_columns_stand_under_each_other() -> None:
    lines = cli.render(STATUS).splitlines()
    head, first = lines[2:4]
    assert [head.index(word) for word in ("STATE", "VIA", "MTU")] == [first.index(w) for w in ("up", "SNI", "1420")]


def test_what_comes_from_the_other_side_cannot_talk_to_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\r\n\x9b31m"
    status = replace(
        STATUS,
        sentence=evil,
        causes=(evil,),
        paths=(PathHealth("stream", evil, "down", evil),),
        peers=(PeerHealth(evil, refused=(evil,)),),
    )
    assert all(line.isprintable() for line in cli.render(status).splitlines())


def test_the_egress_proxys_facts() -> None:
    egress = EgressHealth(
        ("[::]:9443", "/run/x.sock"),
        3,
        dials=(("dial ok", 2), ("policy outside", 1)),
        up_bytes=2048,
        last_failure="10.0.0.1:80: why",
    )
    text = cli.render(replace(STATUS, egress=egress))
    assert "egress on [::]:9443, /run/x.sock: 3 open, 2 dialled, 1 refused or failed, 2.0KiB into the shoot" in text
    assert "egress, last failure: 10.0.0.1:80: why" in text
    assert text.splitlines()[0] == cli.render(STATUS).splitlines()[0]


def test_colour_is_only_on_the_verdict() -> None:
    text = cli.render(STATUS, colour=True)
    assert text.startswith("\x1b[1;33mDEGRADED\x1b[0m  seed-server")
    assert text.replace("\x1b[1;33m", "").replace("\x1b[0m", "") == cli.render(STATUS)


def test_long_tables_are_cut() -> None:
    text = cli.render(replace(STATUS, peers=tuple(PeerHealth(f"n{i}") for i in range(5000))))
    assert len(text.splitlines()) < 100 and "... and 4950 more" in text


class Roles:
    """Health servers on Unix sockets, in a thread of their own because the command blocks. `statuses` may change meanwhile."""

    def __init__(self, directory: Path, statuses: dict[str, RoleStatus]) -> None:
        self._directory = directory
        self._statuses = statuses
        self._ready = threading.Event()
        self._stop: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        stop = asyncio.Event()
        self._stop = (asyncio.get_running_loop(), stop)
        servers = [
            observability.HealthServer(
                None, partial(self._statuses.__getitem__, name), path=self._directory / f"{name}.status"
            )
            for name in self._statuses
        ]
        for server in servers:
            await server.__aenter__()
        self._ready.set()
        await stop.wait()
        for server in servers:
            await server.__aexit__(None, None, None)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._ready.wait(5)

    def __exit__(self, *_: object) -> None:
        assert self._stop is not None
        loop, stop = self._stop
        loop.call_soon_threadsafe(stop.set)
        self._thread.join(5)


UP = replace(STATUS, verdict=Verdict.UP, sentence="all is well", causes=(), ifname="rz-up")
DOWN = replace(STATUS, verdict=Verdict.DOWN, sentence="nothing works", ifname="rz-down")


def run(directory: Path, *words: str) -> int:
    return main(["status", "--runtime-dir", str(directory), *words])


def test_one_role(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Roles(tmp_path, {"rz-seed": STATUS}):
        assert run(tmp_path) == 0
        assert squeeze(capsys.readouterr().out) == squeeze(TABLE)
        assert run(tmp_path, "--strict") == 1
        capsys.readouterr()
        assert run(tmp_path, "-o", "json") == 0
        assert from_json(json.loads(capsys.readouterr().out)[0]) == STATUS


def test_the_worst_role_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Roles(tmp_path, {"a": UP, "b": STATUS, "c": DOWN}):
        assert run(tmp_path) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("UP", "DEGRADED", "DOWN"))]
    assert [line.split()[2] for line in lines] == ["rz-down", "rz-seed", "rz-up"]


def test_a_dead_daemon_is_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "rz-old.status"))
    with Roles(tmp_path, {"rz-up": UP}):
        assert run(tmp_path) == 1
    out = capsys.readouterr().out
    assert out.startswith("DOWN  daemon rz-old: the daemon is not running; the tunnel stays as it left it\n\nUP ")


def test_a_daemon_that_hangs_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(tmp_path / "rz0.status"))
        hung.listen()
        assert run(tmp_path) == 1
    assert "DOWN  daemon rz0: the daemon does not answer (timed out)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n", "answers 500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "not a status of Rhizome"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", "does not answer"),
        (b"SSH-2.0-OpenSSH\r\n", "does not answer"),
        (b"", "does not answer"),
    ],
)
def test_a_daemon_that_talks_nonsense_is_down(tmp_path: Path, answer: bytes, words: str) -> None:
    path = tmp_path / "rz0.status"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        status = cli.ask(path)
        thread.join(5)
    assert status.verdict is Verdict.DOWN and words in status.sentence


def test_no_daemon_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "nowhere") == 1
    assert "no Rhizome daemon has its socket in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_are_for_terminals_that_want_them(
    tmp_path: Path,
    environment: dict[str, str],
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"NO_COLOR": "", "TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    with Roles(tmp_path, {"rz-up": UP}):
        run(tmp_path)
        assert "\x1b" not in capsys.readouterr().out
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        run(tmp_path)
        assert ("\x1b" in capsys.readouterr().out) == coloured
