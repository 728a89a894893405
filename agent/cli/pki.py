"""`rhizome-agent pki`: certificates for people without a PKI."""

from __future__ import annotations

import argparse
import datetime as dt
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
    renew = commands.add_parser(
        "renew", help="issue again what has used two thirds of its lifetime, or is of an older CA"
    )
    renew.add_argument("--all", action="store_true", help="issue everything again")
    new_ca = commands.add_parser("new-ca", help="make a new CA; the old one is trusted beside it until retire-ca")
    retire_ca = commands.add_parser("retire-ca", help="trust the newest CA only")
    new = (init, server, *(commands.choices[word] for word in ("client", "sidecar")))
    for sub in commands.choices.values():
        sub.add_argument(
            "--dir", type=Path, default=Path("pki"), metavar="PATH", help="where the files are (default: pki)"
        )
        if sub in new:
            sub.add_argument("--force", action="store_true", help="replace files that exist")
        if sub in new and sub is not init:
            sub.add_argument("--days", type=int, metavar="N", help="lifetime (default: a year)")
    new_ca.add_argument("--days", type=int, metavar="N", help="lifetime (default: ten years)")
    for sub in (renew, new_ca, retire_ca):
        sub.set_defaults(again=True)


def run(arguments: argparse.Namespace) -> int:
    from agent import pki  # cryptography, only when it is used

    if getattr(arguments, "again", False):
        return _again(arguments)

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


def _again(arguments: argparse.Namespace) -> int:
    """What is there is replaced, in the order that drops no tunnel: docs/rotation.md."""
    from agent import pki, renewal

    directory: Path = arguments.dir
    try:
        if arguments.what == "new-ca":
            made = renewal.new_ca(directory, days=_or(arguments.days, pki.CA_DAYS))
            sys.stdout.write(
                f"wrote {made.certificate}: a new CA, valid until {made.not_after:%Y-%m-%d}, and the old one, which is trusted too\n"
                f"next: put {made.certificate} everywhere, then rhizome-agent pki renew --dir {directory}\n"
            )
        elif arguments.what == "retire-ca":
            gone = renewal.retire_ca(directory)
            sys.stdout.write(f"{gone} older CAs are trusted no more\n" if gone else "there is only one CA\n")
        else:
            renewed = renewal.renew(directory, everything=arguments.all)
            for issued in renewed:
                sys.stdout.write(
                    f"wrote {issued.certificate}: {issued.identity}, valid until {issued.not_after:%Y-%m-%d}\n"
                )
            if not renewed:
                sys.stdout.write("nothing is due\n")
            if renewal.ca_is_due(directory, dt.datetime.now(dt.UTC)):
                sys.stdout.write(
                    f"the CA has used two thirds of its lifetime: rhizome-agent pki new-ca --dir {directory}\n"
                )
    except ValueError as exc:
        raise ConfigError(f"pki {arguments.what}: {exc}") from exc
    return Exit.OK


def _or(days: int | None, default: int) -> int:
    return default if days is None else days
