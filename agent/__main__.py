"""rhizome-agent: the tools beside the daemons. Each sub-command is a module that is imported only when it is asked for.

To add one: write a module with `arguments(parser)` and `run(arguments) -> int`, and a line in COMMANDS.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agent.cli.program import Command, Program
from agent.run import run_command

PROGRAM = "rhizome-agent"

COMMANDS: dict[str, Command] = {
    "status": Command(
        "agent.cli.status",
        "say whether the tunnels of this host are up, and if not, why",
        ("rhizome-agent status", "rhizome-agent status -o json"),
    ),
    "doctor": Command(
        "agent.cli.doctor",
        "check on this host what the alerts ask for: what is wrong, and what to do next",
        ("rhizome-agent doctor", "rhizome-agent doctor --all --seconds 10", "rhizome-agent doctor -o json"),
    ),
    "pki": Command(
        "agent.cli.pki",
        "make a CA and the certificates of server, clients and sidecars",
        (
            "rhizome-agent pki init --control-plane shoot--garden--a",
            "rhizome-agent pki server --dns vpn.example --ip 192.0.2.1",
            "rhizome-agent pki client --name node-1",
            "rhizome-agent pki renew",
        ),
    ),
    "sidecar": Command(
        "agent.cli.sidecar",
        "give the pod that it runs in routes to the shoot's nodes, pods and services",
        ("rhizome-agent sidecar --config examples/sidecar.toml --print-config",),
    ),
    "enrol-token": Command(
        "agent.cli.enrol_token",
        "make a token with which one machine enrols once, without a certificate",
        (
            "rhizome-agent enrol-token create spiffe://a/shoot-client/edge-1 --ttl 1h --file tokens.txt",
            "rhizome-agent enrol-token list --file tokens.txt",
            "rhizome-agent enrol-token remove spiffe://a/shoot-client/edge-1 --file tokens.txt",
        ),
    ),
    "revoke": Command(
        "agent.cli.revoke",
        "let somebody in no more: an entry in a seed server's deny list",
        (
            "rhizome-agent revoke spiffe://a/shoot-client/node-1 --deny-file deny.txt",
            "rhizome-agent revoke spiffe://a/shoot-client/node-1 --deny-file deny.txt --undo",
        ),
    ),
    "cleanup": Command(
        "agent.cli.cleanup",
        "remove all that Rhizome made in this network namespace, and stop its carriers",
        ("rhizome-agent cleanup --dry-run", "rhizome-agent cleanup"),
    ),
    "drain": Command(
        "agent.cli.drain",
        "let the egress proxies finish what is open, and end (the daemon is stopped before)",
        ("rhizome-agent drain --seconds 25",),
    ),
    "rotate": Command(
        "agent.cli.rotate",
        "give every client of the seed servers of this host a new preshared key",
        ("rhizome-agent rotate",),
    ),
    "wgconf": Command(
        "agent.cli.wgconf",
        "show a WireGuard device as wg-quick text, without its keys (needs rhizome[wgconf])",
        ("rhizome-agent wgconf rz-seed",),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The console script: exit codes are those of agent.exits."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: dispatch(words))


def dispatch(words: Sequence[str]) -> int:
    """Raises ConfigError for a command line that means nothing, SystemExit after --help."""
    about = "The tools beside the daemons rhizome-seed-server and rhizome-shoot-client."
    return Program(PROGRAM, about, COMMANDS).dispatch(words)


if __name__ == "__main__":
    sys.exit(main())
