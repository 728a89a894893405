"""Runs tests of other folders again on a real Debian kernel with WireGuard, in a virtual machine.

The machine's kernel brings what this one may lack: WireGuard, netem and all of nftables. Most of it works in the background from the
beginning of the session (tests/kernel/conftest.py) at idle priority, and its output is shown when its turn has come; what counts packets
has the processors for itself. Needs root and Debian; scripts/kernel-vm fetches the rest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]

#: Files whose tests say something about the kernel.
BESIDE = (
    "tests/contract/wireguard/test_devices.py",
    "tests/contract/wireguard/test_peers.py",
    "tests/contract/test_wireguard_traffic.py",
    "tests/contract/netstack/test_steps.py",
    "tests/contract/netstack/test_tampering.py",
    "tests/netns/test_netlink.py",
    "tests/netns/test_firewall.py",
    "tests/kernel/inside_sidecar.py",
)
ALONE = ("tests/kernel/inside_tunnel.py",)
#: Parameters of those tests that need no kernel, and were run outside already.
SELECTION = "not fake and not userspace"

LIMIT_S = 2700  # far more than an idle machine takes, because these are shared
POLL_S = 0.5
_READ_BYTES = 65536


class Vm:
    """One run of the virtual machine with the tests of these files; `beside` others, at idle priority."""

    def __init__(self, files: Sequence[str], *, beside: bool = False) -> None:
        self.files = files
        self.beside = beside
        self._process: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115

    def start(self) -> None:
        """Does nothing when it was started before. Ends with this process."""
        if self._process is not None:
            return
        command = ["setpriv", "--pdeathsig", "TERM", *(["chrt", "--idle", "0"] if self.beside else [])]
        command += [str(ROOT / "scripts/kernel-vm"), "-t", str(LIMIT_S), "--"]
        command += ["env", "RHIZOME_LAB_PATIENCE=8", sys.executable, "-m", "pytest", *self.files]
        command += ["-k", SELECTION, "-v", "--durations=5", "--color=no", "-p", "no:cacheprovider"]
        command += ["-o", "timeout=600"]  # everything takes 13 to 20 times as long
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=self._said, stderr=subprocess.STDOUT
        )

    def lines(self) -> Iterator[str]:
        """What it says, from the beginning to its end."""
        at, rest = 0, b""
        while True:
            ended = self.status is not None
            while more := os.pread(self._said.fileno(), _READ_BYTES, at):  # its place in the file is the machine's own
                at += len(more)
                *whole, rest = (rest + more).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
            if ended:
                return
            time.sleep(POLL_S)

    @property
    def status(self) -> int | None:
        """How it ended, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


VMS = {"beside": Vm(BESIDE, beside=True), "alone": Vm(ALONE)}


def begin(name: str) -> None:
    """Called for each that is wanted, before the session's first test."""
    if VMS[name].beside:
        VMS[name].start()


def end() -> None:
    """Called when the session is over, however it ends."""
    for vm in VMS.values():
        vm.stop()


@pytest.mark.timeout(LIMIT_S + 300)  # and the download of the kernel, once
@pytest.mark.parametrize("name", VMS)
def test_on_a_real_kernel(capsys: pytest.CaptureFixture[str], name: str) -> None:
    vm, said = VMS[name], []
    vm.start()
    with capsys.disabled():
        print()
        for line in vm.lines():
            print(f"  vm| {line}", flush=True)
            said.append(line)
    text = "\n".join(said)
    assert vm.status == 0, f"scripts/kernel-vm ended with {vm.status}"
    for file in vm.files:
        ran = len(re.findall(rf"^{re.escape(file)}::\S+ PASSED", text, re.MULTILINE))
        assert ran, f"no test of {file} ran in the virtual machine"
