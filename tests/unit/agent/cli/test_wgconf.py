"""`rhizome-agent wgconf`: the device is found in whichever data plane has it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from agent.__main__ import main
from agent.errors import Unsupported
from agent.exits import Exit
from agent.model import DeviceState, PrivateKey
from agent.wireguard import choose
from agent.wireguard.choose import Choice, Mode

DEVICE = DeviceState(PrivateKey(bytes(32)), 51820, 0, frozenset())


@dataclass
class Backend:
    devices: dict[str, DeviceState]

    async def read(self, ifname: str) -> DeviceState | None:
        return self.devices.get(ifname)


def planes(monkeypatch: pytest.MonkeyPatch, **devices: dict[str, DeviceState]) -> None:
    async def fake(mode: Mode) -> Choice:
        wanted = Mode.KERNEL if mode is Mode.AUTO and "kernel" in devices else Mode.USERSPACE
        if wanted.value not in devices:
            raise Unsupported("no /dev/net/tun")
        return Choice(Backend(devices[wanted.value]), wanted, "")  # type: ignore[arg-type]

    monkeypatch.setattr(choose, "choose", fake)


def test_in_the_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    planes(monkeypatch, kernel={"rz0": DEVICE})
    assert main(["wgconf", "rz0"]) == Exit.OK
    assert "ListenPort = 51820" in capsys.readouterr().out


def test_in_user_space_beside_a_kernel_that_has_wireguard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planes(monkeypatch, kernel={}, userspace={"rz0": DEVICE})
    assert main(["wgconf", "rz0"]) == Exit.OK
    assert "ListenPort = 51820" in capsys.readouterr().out


@pytest.mark.parametrize("devices", [{"kernel": {}}, {"kernel": {}, "userspace": {}}, {"userspace": {}}])
def test_nowhere(
    devices: dict[str, dict[str, DeviceState]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planes(monkeypatch, **devices)
    assert main(["wgconf", "rz0"]) == Exit.FAILED
    assert "there is no WireGuard device rz0 here" in capsys.readouterr().err


def test_not_possible_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    planes(monkeypatch)
    assert main(["wgconf", "rz0"]) == Exit.UNSUPPORTED
    assert "no /dev/net/tun" in capsys.readouterr().err
