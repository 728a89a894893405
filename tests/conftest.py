"""For all tests: no deadline per example, because the machines that run them are shared; a network namespace on request."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings

from agent.wireguard import kernel

settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

# A shell's background jobs ignore Ctrl-C, and so would every program that a test starts to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *args: int) -> None:
    if getattr(_libc, function)(*args):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), function)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs WireGuard in the kernel is left out, loudly, where the kernel has none: tests/kernel boots one that has."""
    marked = [item for item in items if item.get_closest_marker("kernel_wireguard")]
    refusal = asyncio.run(kernel.probe()) if marked else None
    if refusal is None:
        return
    if "RHIZOME_VM" in os.environ:
        raise pytest.UsageError(f"the virtual machine's kernel has no WireGuard: {refusal}")
    config.hook.pytest_deselected(items=marked)
    items[:] = [item for item in items if item not in marked]
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"{len(marked)} tests are left to the virtual machine (tests/kernel): {refusal}")


@contextmanager
def fresh_namespace() -> Iterator[None]:
    """This thread, and those it starts meanwhile, live in a new network namespace with only a loopback device."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _call("unshare", _CLONE_NEWNET)
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
            _delete_links()
        finally:
            _call("setns", before, _CLONE_NEWNET)
    finally:
        os.close(before)


def _delete_links() -> None:
    """The processes behind TUN devices end with them, and let go of the namespace."""
    for link in json.loads(subprocess.check_output(["ip", "-j", "link"])):
        if link["ifname"] != "lo":
            subprocess.run(["ip", "link", "del", link["ifname"]], check=False, capture_output=True)


@pytest.fixture
def netns() -> Iterator[None]:
    """A network namespace of the test's own, entered by the test's thread."""
    if os.geteuid() != 0:
        pytest.fail("network namespaces need root", pytrace=False)
    with fresh_namespace():
        yield
