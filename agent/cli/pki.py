"""`rhizome-agent pki`: certificates for people without a PKI."""

from __future__ import annotations

import argparse
import sys
from ipaddress import ip_address
from pathlib import Path

from agent.errors import ConfigError
from agent.exits import Exit
from agent.identity import Role


def arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT", parser_class=type(parser))
    init = commands.add_parser("init", help="make the CA of a control plane")
    init.add_argument("--control-plane", required=True, metavar="LABEL", help="name of the control plane")
    init.add_argument("--days", type=int, metavar="N", help="lifetime (default: ten years)")
    server = commands.add_parser("server", help="issue a seed server's certificate")
    server.add_argument("--dns", action="append", default=[], metavar="NAME", help="name clients dial; may be repeated")
    server.add_argument(
        "--ip", action="append", default=[], metavar="ADDRESS", help="address clients dial; may be repeated"
    )
    for word, role in (("client", Role.SHOOT_CLIENT), ("sidecar", Role.SIDECAR)):
        leaf = commands.add_parser(word, help=f"issue a {role.value}'s certificate")
        leaf.add_argument("--name", required=True, metavar="NAME", help="stable name, such as the node's")
        leaf.set_defaults(role=role)
    server.set_defaults(role=Role.SEED_SERVER, name="")
    for sub in commands.choices.values():
        sub.add_argument(
            "--dir", type=Path, default=Path("pki"), metavar="PATH", help="where the files are (default: pki)"
        )
        sub.add_argument("--force", action="store_true", help="replace files that exist")
        if sub is not init:
            sub.add_argument("--days", type=int, metavar="N", help="lifetime (default: a year)")


def run(arguments: argparse.Namespace) -> int:
    from agent import pki  # cryptography, only when it is used

    try:
        if arguments.what == "init":
            issued = pki.make_ca(
                arguments.dir, arguments.control_plane, days=_or(arguments.days, pki.CA_DAYS), force=arguments.force
            )
        else:
            issued = pki.issue(
                arguments.dir,
                arguments.role,
                arguments.name,
                dns=getattr(arguments, "dns", []),
                ips=[ip_address(text) for text in getattr(arguments, "ip", [])],
                days=_or(arguments.days, pki.LEAF_DAYS),
                force=arguments.force,
            )
    except ValueError as exc:
        raise ConfigError(f"pki {arguments.what}: {exc}") from exc
    sys.stdout.write(
        f"wrote {issued.certificate}\n"
        f"wrote {issued.key} (private: only its owner may read it)\n"
        f"identity {issued.identity}, valid until {issued.not_after:%Y-%m-%d}\n"
    )
    if arguments.what == "init":
        sys.stdout.write(f"next: rhizome-agent pki server --dir {arguments.dir} --dns NAME\n")
    else:
        files = issued.files
        sys.stdout.write(f"use: --tls-ca {files.ca} --tls-certificate {files.certificate} --tls-key {files.key}\n")
    return Exit.OK


def _or(days: int | None, default: int) -> int:
    return default if days is None else days
