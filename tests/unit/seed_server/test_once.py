"""The file that remembers sidecars that left."""

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.errors import StoreError
from agent.identity import Identity, Role
from agent.model import PresharedKey, PublicKey
from seed_server.once import OnceFile
from seed_server.registry import Client, Once

API = Identity("shoot--garden--a", Role.SIDECAR, "api")
ADDRESS = ip_address("192.168.128.8")
KEY = PublicKey(b"a" * 32)


def client(lasts_s: float = 1000.0) -> Client:
    once = Once(2_000_000_000.0 + lasts_s, lasts_s)
    psk = PresharedKey(b"p" * 32)
    return Client(API, KEY, (ADDRESS,), (), (), (), psk, 0.0, None, direct_key=KEY, path="direct", once=once)


async def test_who_left_is_found_again_by_the_next_server(tmp_path: Path) -> None:
    path = tmp_path / "once.json"
    assert OnceFile(path).load({}) == ()
    await OnceFile(path).save([client(), replace(client(), once=None)])
    assert path.stat().st_mode & 0o777 == 0o600 and not path.with_name("once.json.tmp").exists()
    (found,) = OnceFile(path).load({ADDRESS: API})
    assert found.identity == API and found.public_key == KEY and found.once is not None


async def test_an_address_that_is_somebody_elses_now_is_not_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "once.json"
    await OnceFile(path).save([client()])
    assert OnceFile(path).load({ADDRESS: replace(API, name="other")}) == ()
    assert OnceFile(path).load({}) == ()


async def test_nothing_is_written_when_nothing_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "once.json"
    file = OnceFile(path)
    await file.save([])
    assert not path.exists()
    await file.save([client()])
    before = path.stat().st_ino
    await file.save([client()])
    assert path.stat().st_ino == before
    await file.save([])
    assert OnceFile(path).load({ADDRESS: API}) == ()


async def test_what_cannot_be_read_or_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="once_file: cannot write"):
        await OnceFile(tmp_path / "absent" / "once.json").save([client()])
    (tmp_path / "once.json").write_text("{")
    with pytest.raises(StoreError, match="not what this version writes"):
        OnceFile(tmp_path / "once.json").load({})
    with pytest.raises(StoreError, match="once_file"):
        OnceFile(tmp_path).load({})
