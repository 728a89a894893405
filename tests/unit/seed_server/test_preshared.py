"""Preshared keys by age and by command: who is due, in which order, and how many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from agent.identity import Identity, Role
from agent.keys import generate_preshared_key
from agent.model import PresharedKey, PublicKey
from seed_server.preshared import AT_ONCE, Rotation, due, renewed
from seed_server.registry import Client, Registry


def client(name: str, since: float, stream: int | None = 1) -> Client:
    return Client(
        identity=Identity("a", Role.SHOOT_CLIENT, name),
        public_key=PublicKey(name.encode().ljust(32, b".")),
        addresses=(),
        own=(),
        shared=(),
        refused=(),
        preshared_key=PresharedKey(bytes(32)),
        expires_at=1e9,
        stream=stream,
        preshared_since=since,
    )


def registry(*clients: Client) -> Registry:
    return Registry(clients=MappingProxyType({c.identity.name: c for c in clients}))


def test_the_oldest_first_and_nobody_who_cannot_be_told() -> None:
    known = registry(client("new", 90.0), client("old", 10.0), client("older", 5.0), client("away", 1.0, None))
    assert due(known, 50.0) == ["older", "old"]


def test_only_key_and_time_change() -> None:
    known = registry(client("a", 1.0), client("b", 1.0))
    fresh = generate_preshared_key()
    after = renewed(known, {"a": fresh}, 7.0)
    assert after.clients["a"] == replace(known.clients["a"], preshared_key=fresh, preshared_since=7.0)
    assert after.clients["b"] is known.clients["b"]


class Here:
    """A server that does what it is asked, and writes it down."""

    def __init__(self, asked: Path, *clients: Client) -> None:
        self.registry = registry(*clients)
        self.renewed: list[list[str]] = []
        self.now = 0.0
        self.rotation = Rotation(lambda: self.registry, self.renew, lifetime_s=100.0, asked=asked)

    async def renew(self, keys: Sequence[str]) -> None:
        self.renewed.append(list(keys))
        self.registry = renewed(self.registry, {key: generate_preshared_key() for key in keys}, self.now)

    async def look(self, now: float) -> None:
        self.now = now
        await self.rotation.look(now)


async def test_by_age(tmp_path: Path) -> None:
    here = Here(tmp_path / "asked", client("a", 0.0), client("b", 30.0))
    for now in (100.0, 101.0, 102.0, 131.0, 132.0, 201.0, 202.0):
        await here.look(now)
    assert here.renewed == [["a"], ["b"], ["a"]]


async def test_by_command_everybody_once(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    here = Here(asked, *(client(f"n{n:03}", float(n) / 1000) for n in range(AT_ONCE + 1)), client("away", 0.0, None))
    await here.look(1.0)
    assert here.renewed == []
    asked.touch()
    await here.look(2.0)
    assert not asked.exists()
    await here.look(3.0)
    assert [len(keys) for keys in here.renewed] == [AT_ONCE, 1]
    here.registry = replace(
        here.registry, clients=MappingProxyType({**here.registry.clients, "away": client("away", 0.0, 5)})
    )
    await here.look(4.0)
    await here.look(5.0)
    assert here.renewed[2:] == [["away"]], "it was away when everybody was asked"


async def test_a_file_that_cannot_be_removed_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    asked.mkdir()  # unlink() raises
    here = Here(asked, client("a", 1.0))
    await here.look(2.0)
    assert here.renewed == [["a"]]
