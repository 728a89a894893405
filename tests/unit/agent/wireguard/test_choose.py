"""Which backend is taken, and what people are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import Unsupported
from agent.wireguard import choose as module
from agent.wireguard import kernel
from agent.wireguard.choose import Mode, choose, find_program
from agent.wireguard.kernel import KernelWireGuard
from agent.wireguard.userspace import UserspaceWireGuard

NO_MODULE = "this kernel has no WireGuard"


class World:
    """A host on which everything is there; a test takes something away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self._monkeypatch = monkeypatch
        self.home, self.path, self.tun = directory / "home", directory / "bin", directory / "tun"
        self.path.mkdir()
        self.tun.write_text("")
        self.packaged = self.program(self.path / "wireguard-go")
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.setenv("PATH", str(self.path))
        monkeypatch.setattr(module, "_TUN", self.tun)
        self.kernel(None)
        self.capability(True)

    def program(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return path

    def kernel(self, refusal: str | None) -> None:
        async def probe() -> str | None:
            return refusal

        self._monkeypatch.setattr(kernel, "probe", probe)

    def capability(self, there: bool) -> None:
        self._monkeypatch.setattr(module, "_may_manage_networks", lambda: there)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.KERNEL])
async def test_the_kernel_is_taken_where_it_can(world: World, mode: Mode) -> None:
    choice = await choose(mode)
    assert isinstance(choice.backend, KernelWireGuard)
    assert choice.kind is Mode.KERNEL


async def test_auto_takes_user_space_and_says_why_not_the_kernel(world: World) -> None:
    world.kernel(NO_MODULE)
    choice = await choose(Mode.AUTO)
    assert isinstance(choice.backend, UserspaceWireGuard)
    assert choice.kind is Mode.USERSPACE
    assert NO_MODULE in choice.reason
    assert str(world.packaged) in choice.reason


async def test_user_space_can_be_asked_for_where_the_kernel_could(world: World) -> None:
    choice = await choose(Mode.USERSPACE)
    assert choice.kind is Mode.USERSPACE
    assert "asked for" in choice.reason


async def test_a_kernel_that_was_asked_for_and_is_missing_is_no_choice(world: World) -> None:
    world.kernel(NO_MODULE)
    with pytest.raises(Unsupported, match="--wireguard=kernel: this kernel has no WireGuard"):
        await choose(Mode.KERNEL)


async def test_everything_that_is_missing_is_said_at_once(world: World) -> None:
    world.kernel(NO_MODULE)
    world.packaged.unlink()
    world.tun.unlink()
    world.capability(False)
    with pytest.raises(Unsupported) as caught:
        await choose(Mode.AUTO)
    message = str(caught.value)
    for words in (NO_MODULE, "scripts/install-wireguard-go", str(world.tun), "CAP_NET_ADMIN"):
        assert words in message


async def test_each_missing_thing_alone_is_enough(world: World) -> None:
    world.tun.unlink()
    with pytest.raises(Unsupported, match="load the tun module"):
        await choose(Mode.USERSPACE)
    world.tun.write_text("")
    world.capability(False)
    with pytest.raises(Unsupported, match="CAP_NET_ADMIN"):
        await choose(Mode.USERSPACE)
    world.capability(True)
    assert (await choose(Mode.USERSPACE)).kind is Mode.USERSPACE


def test_our_own_build_goes_before_the_distributions(world: World) -> None:
    assert find_program() == world.packaged
    built = world.program(world.home / module.BUILT_PROGRAM)
    assert find_program() == built
    world.packaged.unlink()
    assert find_program() == built


def test_a_path_means_that_file_and_nothing_else(world: World, tmp_path: Path) -> None:
    world.program(world.home / module.BUILT_PROGRAM)
    other = tmp_path / "other"
    assert find_program(str(other)) is None
    other.write_text("not executable")
    assert find_program(str(other)) is None
    assert find_program(str(tmp_path)) is None
    assert find_program(str(world.program(other))) == other


def test_another_name_is_looked_up_in_path(world: World) -> None:
    assert find_program("boringtun") is None
    assert find_program("boringtun") != world.program(world.path / "boringtun")
    assert find_program("boringtun") == world.path / "boringtun"


async def test_the_callback_and_the_limit_reach_the_backend(world: World) -> None:
    seen: list[str] = []
    choice = await choose(Mode.USERSPACE, on_exit=seen.append, memory_limit_mib=7)
    assert isinstance(choice.backend, UserspaceWireGuard)
    assert choice.backend._on_exit is not None
    choice.backend._on_exit("wg0")
    assert seen == ["wg0"]
    assert choice.backend._memory_limit_mib == 7


def test_the_capability_is_read_from_proc() -> None:
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    assert module._may_manage_networks() is bool(effective & 1 << 12)
