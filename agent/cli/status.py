"""`rhizome-agent status`: ask every role of this host over its Unix socket; the verdict comes first."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.cli.table import clean, table
from agent.errors import RhizomeError
from agent.exits import Exit
from agent.health import duration
from agent.status import (
    SOCKET_SUFFIX,
    EgressHealth,
    PathHealth,
    PeerHealth,
    RangeHealth,
    RoleStatus,
    Verdict,
    from_json,
    to_json,
)

TIMEOUT_S = 5.0

#: The role of one that does not answer.
_NOBODY = "daemon"
_COLOURS = {Verdict.UP: "32", Verdict.DEGRADED: "33", Verdict.DOWN: "31"}
_ORDER = (Verdict.DOWN, Verdict.DEGRADED, Verdict.UP)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")
    parser.add_argument(
        "--runtime-dir", type=Path, default=Path("/run/rhizome"), metavar="PATH", help="default: /run/rhizome"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 also when something is DEGRADED")


def run(arguments: argparse.Namespace) -> int:
    """OK when every role is up or degraded, FAILED when one is down or there is none."""
    statuses = sorted(collect(arguments.runtime_dir), key=lambda status: _ORDER.index(status.verdict))
    if arguments.output == "json":
        sys.stdout.write(json.dumps([to_json(status) for status in statuses], indent=2) + "\n")
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        sys.stdout.write("\n".join(render(status, colour=colour) for status in statuses))
    bad = {Verdict.DOWN, Verdict.DEGRADED} if arguments.strict else {Verdict.DOWN}
    return Exit.FAILED if any(status.verdict in bad for status in statuses) else Exit.OK


def collect(runtime_dir: Path) -> list[RoleStatus]:
    """The status of every role that has a socket here. Raises RhizomeError when there is none."""
    return [ask(path) for path in sockets(runtime_dir)]


def sockets(runtime_dir: Path) -> list[Path]:
    """Of all roles here, by name. Raises RhizomeError when there is none."""
    found = sorted(runtime_dir.glob(f"*{SOCKET_SUFFIX}"))
    if not found:
        raise RhizomeError(
            f"no Rhizome daemon has its socket in {runtime_dir}: start one, or name its directory with --runtime-dir"
        )
    return found


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


def ask(path: Path) -> RoleStatus:
    """One role's status. A role that does not answer is down, and says so: the data plane may well go on without it."""
    try:
        code, body = fetch(path, "/status")
        if code != 200:
            return _silent(path, f"the daemon answers {code}: see its log")
        return from_json(json.loads(body))
    except PermissionError as exc:
        raise RhizomeError(f"{path}: {exc.strerror}: run this as root") from exc
    except (ConnectionRefusedError, FileNotFoundError):
        return _silent(path, "the daemon is not running; the tunnel stays as it left it")
    except (OSError, http.client.HTTPException, ValueError) as exc:
        return _silent(path, f"the daemon does not answer ({exc or type(exc).__name__})")


def fetch(path: Path, page: str) -> tuple[int, bytes]:
    """The HTTP status and the body of a role's page. Raises OSError, HTTPException."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", page)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def answered(status: RoleStatus) -> bool:
    """Whether `ask` had this from the role itself."""
    return status.role != _NOBODY


def _silent(path: Path, sentence: str) -> RoleStatus:
    return RoleStatus(_NOBODY, "", path.name.removesuffix(SOCKET_SUFFIX), Verdict.DOWN, sentence, 0.0)


def render(status: RoleStatus, *, colour: bool = False) -> str:
    """The status as text; the first line is the verdict."""
    verdict = status.verdict.value
    if colour:
        verdict = f"\x1b[1;{_COLOURS[status.verdict]}m{verdict}\x1b[0m"
    of = f" of {status.control_plane}" if status.control_plane else ""
    since = f" (for {duration(status.since_s)})" if status.since_s else ""
    lines = [f"{verdict}  {clean(f'{status.role} {status.ifname}{of}: {status.sentence}')}{since}"]
    lines += table(
        ["PATH", "STATE", "VIA", "RTT", "HANDSHAKE", "MTU", "RECEIVED", "SENT", "DROPPED"], map(_path, status.paths)
    )
    lines += table(
        ["PEER", "HEALTH", "CANARY", "RTT", "HANDSHAKE", "ADDRESSES", "CARRIES", "RECEIVED", "SENT"],
        map(_peer, status.peers),
    )
    lines += table(["RANGE", "KIND", "CARRIER"], map(_range, status.ranges))
    lines += _list("causes", status.causes)
    lines += _list("facts", _facts(status))
    return "\n".join(lines) + "\n"


def _path(path: PathHealth) -> Sequence[str]:
    return (
        path.transport,
        path.state + ("" if path.in_use else ", standby"),
        f"{path.via} ({path.detail})" if path.detail else path.via,
        _ms(path.rtt_s),
        _age(path.handshake_age_s),
        str(path.mtu_bytes or ""),
        _size(path.rx_bytes),
        _size(path.tx_bytes),
        _counts(path.drops),
    )


def _peer(peer: PeerHealth) -> Sequence[str]:
    return (
        peer.name,
        peer.standing + (f" ({peer.reason})" if peer.reason else ""),
        _age(peer.canary_age_s),
        _ms(peer.rtt_s),
        _age(peer.handshake_age_s),
        " ".join(peer.addresses),
        (f"may reach {_first(peer.reaches)}" if peer.reaches else _first(peer.prefixes))
        + (f" (refused: {_first(peer.refused)})" if peer.refused else ""),
        _size(peer.rx_bytes),
        _size(peer.tx_bytes),
    )


def _range(item: RangeHealth) -> Sequence[str]:
    return item.prefix, item.kind, item.carrier or "nobody"


def _facts(status: RoleStatus) -> list[str]:
    facts = []
    if status.backend:
        reason = f" ({status.backend_reason})" if status.backend_reason else ""
        facts.append(f"WireGuard: {status.backend}{reason}, epoch {status.epoch or 'unknown'}")
    if status.key_age_s is not None:
        facts.append(
            f"WireGuard's key: {duration(status.key_age_s)} old, of {status.key_device}{f'; {status.rotation}' if status.rotation else ''}"
        )
    facts += [f"tunnel addresses of {pool.network}: {pool.used} used, {pool.free} free" for pool in status.pools]
    if status.egress is not None:
        facts += _egress(status.egress)
    for name, left in (
        ("certificate", status.certificate_expires_in_s),
        ("token", status.token_expires_in_s),
        ("grant", status.grant_expires_in_s),
    ):
        if left is not None:
            facts.append(f"{name}: {'ends in ' + duration(left) if left > 0 else 'has ended'}")
    counters = status.counters
    for name, counts in (
        ("refused prefixes", counters.refused),
        ("turned away", counters.turned_away),
        ("changes to the host", counters.repairs),
        ("failovers", counters.failovers),
        ("rotations of WireGuard's keys", counters.rotations),
    ):
        if counts:
            facts.append(f"{name}: {_counts(counts)}")
    if counters.moves:
        facts.append(f"shared prefixes moved: {counters.moves}")
    if counters.path_moves:
        facts.append(f"changes of path: {counters.path_moves}")
    if counters.reconnects:
        facts.append(f"reconnects: {counters.reconnects}")
    if status.version:
        facts.append(status.version)
    return facts


def _egress(egress: EgressHealth) -> list[str]:
    good = dict(egress.dials).get("dial ok", 0)
    failed = sum(count for _, count in egress.dials) - good
    facts = [
        f"egress on {', '.join(egress.listening)}: {egress.open} open, {good} dialled, {failed} refused or failed, "
        f"{_size(egress.up_bytes)} into the shoot, {_size(egress.down_bytes)} out of it"
    ]
    if egress.last_failure:
        facts.append(f"egress, last failure: {egress.last_failure}")
    return facts


def _list(head: str, items: Sequence[str]) -> list[str]:
    return ["", f"{head}:", *(f"  {clean(item)}" for item in items)] if items else []


def _age(age_s: float | None) -> str:
    return "never" if age_s is None else f"{duration(age_s)} ago"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f}ms"


def _size(count: int) -> str:
    """Bytes in binary units."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f}{unit}" if unit != "B" else f"{count}B"


def _counts(counts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{word} {count}" for word, count in counts)


def _first(texts: Sequence[str], most: int = 3) -> str:
    return " ".join(texts[:most]) + (f" +{len(texts) - most}" if len(texts) > most else "")
