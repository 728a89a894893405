"""The lab's DNS: a real dnsmasq whose answers can be changed while it runs."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

from lab.namespaces import Machine
from lab.processes import wait_until


class Names:
    """A DNS server on one machine of the lab. It knows the names it is given and forwards nothing."""

    def __init__(self, machine: Machine, addresses: Iterable[str]) -> None:
        self._hosts = machine.directory / "hosts"
        self._records: dict[str, tuple[str, ...]] = {}
        self._hosts.write_text("")
        self._process = machine.spawn(
            [
                "dnsmasq",
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                f"--addn-hosts={self._hosts}",
                f"--listen-address={','.join(addresses)}",
                "--bind-interfaces",
                "--user=root",
                f"--pid-file={machine.directory / 'dnsmasq.pid'}",
                "--log-facility=-",
                "--local-ttl=0",
            ],
            name="dnsmasq",
        )
        self._process.wait_for_output("started")

    def set(self, records: Mapping[str, Iterable[str]]) -> None:
        """Replace the answers for these names; in force when this returns."""
        self._records |= {name: tuple(addresses) for name, addresses in records.items()}
        lines = [f"{address} {name}\n" for name, addresses in self._records.items() for address in addresses]
        _write_atomically(self._hosts, "".join(lines))
        loads = self._loads()
        self._process.signal(signal.SIGHUP)
        wait_until(lambda: self._loads() > loads, "dnsmasq reading its hosts file")

    def _loads(self) -> int:
        return self._process.output().count(f"read {self._hosts}")


def _write_atomically(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
