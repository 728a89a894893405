"""rhizome-ipam: addresses by hand, what is known of one, and whether an address plan can work."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agent.cli.program import Command, Program
from agent.run import run_command

PROGRAM = "rhizome-ipam"
ABOUT = "Addresses out of pools: who has which, who gets one, and whether a plan of networks can work."

COMMANDS: dict[str, Command] = {
    "allocate": Command(
        "ipam.cli.allocate",
        "give an owner one block of each pool, or say which it has",
        (
            "rhizome-ipam allocate --store a.log --network 192.168.128.0/17 shoot-client/shoot--garden--a/node-1/uid-1",
            "rhizome-ipam allocate --store a.log --pools examples/pools.toml --label region=eu shoot/garden/a/uid-2",
            "rhizome-ipam allocate --store a.log --pools examples/pools.toml --pool shoots-eu --out-of shoot/garden/a/uid-2 node/a/n1/uid-3",
        ),
    ),
    "release": Command(
        "ipam.cli.release",
        "take an owner's blocks back; nobody else gets them before the quarantine is over",
        ("rhizome-ipam release --store a.log shoot-client/shoot--garden--a/node-1/uid-1",),
    ),
    "list": Command(
        "ipam.cli.list",
        "show who has what, and how full the pools are",
        ("rhizome-ipam list --store a.log", "rhizome-ipam list --store a.log --kind node -o json"),
    ),
    "explain": Command(
        "ipam.cli.explain",
        "say all that is known of one address: who, since when, out of which pool, what came before",
        ("rhizome-ipam explain --store a.log 192.168.128.8",),
    ),
    "check": Command(
        "ipam.cli.check",
        "look for contradictions, orphans, full pools, and with a list of the living for leaks",
        ("rhizome-ipam check --store a.log --pools examples/pools.toml",),
    ),
    "plan": Command(
        "ipam.cli.plan",
        "say of a plan of seeds and shoots which pairs can work, how, and what to change",
        ("rhizome-ipam plan examples/landscape.yaml", "rhizome-ipam plan examples/landscape.yaml --everywhere -o json"),
    ),
    "watch": Command(
        "ipam.cli.watch",
        "print every change of the store as it happens",
        ("rhizome-ipam watch --store a.log --count 0",),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The console script: exit codes are those of agent.exits."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: dispatch(words))


def dispatch(words: Sequence[str]) -> int:
    """Raises ConfigError for a command line that means nothing, SystemExit after --help."""
    return Program(PROGRAM, ABOUT, COMMANDS).dispatch(words)


if __name__ == "__main__":
    sys.exit(main())
