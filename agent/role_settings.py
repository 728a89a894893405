"""The settings that every role has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar

from agent.carrier.api import TlsFiles
from agent.kinds import (
    IFNAME,
    LABEL,
    LISTEN,
    PATH,
    PORT,
    SECRET_PATH,
    SERVER_NAME,
    TARGET,
    TEXT,
    HostPort,
    choice,
    integer,
    number,
)
from agent.model import MTU_MAX_BYTES, MTU_MIN_BYTES
from agent.settings import BaseSettings, Rule, setting

IDENTITY = "Identity"
TRANSPORT = "Transport"
TUNNEL = "Tunnel"
NETWORKS = "Networks"
OPERATION = "Operation"


class WireGuardChoice(Enum):
    """Which data plane. AUTO takes the kernel when it can and says why when it does not."""

    AUTO = "auto"
    KERNEL = "kernel"
    USERSPACE = "userspace"


class LogLevel(Enum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(Enum):
    JSON = "json"
    TEXT = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSettings(BaseSettings):
    """A role overrides a field to give it another default."""

    GROUPS: ClassVar[tuple[str, ...]] = (IDENTITY, TRANSPORT, NETWORKS, TUNNEL, OPERATION)

    control_plane: str = setting(
        LABEL,
        "name of the control plane; certificates of any other one are refused",
        group=IDENTITY,
    )
    tls_ca: Path = setting(
        PATH, "PEM file with the CA of this control plane, the only one that is trusted", group=IDENTITY, file=True
    )
    tls_certificate: Path | None = setting(
        PATH,
        "PEM file with our certificate chain; empty: a token says who we are",
        group=IDENTITY,
        default=None,
        file=True,
    )
    tls_key: Path | None = setting(
        SECRET_PATH,
        "PEM file with the certificate's private key; empty: none, as there is no certificate",
        group=IDENTITY,
        default=None,
        file=True,
    )

    ifname: str = setting(IFNAME, "name of the WireGuard device", group=TUNNEL, default="rz0")
    wireguard: WireGuardChoice = setting(
        choice(WireGuardChoice),
        "data plane; auto takes the kernel if it has WireGuard, else wireguard-go",
        group=TUNNEL,
        default=WireGuardChoice.AUTO,
    )
    wireguard_go: str = setting(
        TEXT, "the wireguard-go program, a path or a name to look up in PATH", group=TUNNEL, default="wireguard-go"
    )
    wireguard_port: int = setting(PORT, "UDP port of the device", group=TUNNEL, default=51820)
    mtu_bytes: int = setting(
        integer(MTU_MIN_BYTES, MTU_MAX_BYTES, "BYTES"),
        "MTU of the device",
        group=TUNNEL,
        default=1420,
        unit="bytes",
    )

    runtime_dir: Path = setting(
        PATH,
        "directory for sockets: the carrier's and the one that `rhizome-agent status` asks",
        group=OPERATION,
        default=Path("/run/rhizome"),
    )
    health_listen: HostPort | None = setting(
        LISTEN,
        "address of /healthz, /readyz, /metrics and /status (plain HTTP); empty: none",
        group=OPERATION,
        default=HostPort("127.0.0.1", 9841),
        optional=True,
    )
    log_level: LogLevel = setting(
        choice(LogLevel), "least level that is logged", group=OPERATION, default=LogLevel.INFO
    )
    log_format: LogFormat = setting(
        choice(LogFormat), "one JSON object per line, or text for people", group=OPERATION, default=LogFormat.JSON
    )
    resync_s: float = setting(
        number(1, 3600, "SECONDS"),
        "how often the host is compared with what is wanted even if nothing seems to change",
        group=OPERATION,
        default=30.0,
        unit="seconds",
    )

    @property
    def tls(self) -> TlsFiles:
        return TlsFiles(ca=str(self.tls_ca), certificate=str(self.tls_certificate or ""), key=str(self.tls_key or ""))

    def check(self) -> Iterator[Rule]:
        if not self.runtime_dir.is_absolute():
            yield Rule(("runtime_dir",), f"{self.runtime_dir} must be an absolute path")


@dataclass(frozen=True, slots=True, kw_only=True)
class DialSettings(RoleSettings):
    """What a role has that dials a seed server."""

    server: HostPort = setting(TARGET, "the seed server, or the SNI proxy in front of it", group=TRANSPORT)
    server_name: str | None = setting(
        SERVER_NAME,
        "name sent as SNI and checked in the server's certificate; empty: the host of `server`",
        group=TRANSPORT,
        default=None,
    )

    token_file: Path | None = setting(
        SECRET_PATH,
        "file with a token that says who we are, such as a projected ServiceAccount token; read again each time it is "
        "shown; a shoot client's one-time token is replaced there by the credential that it is exchanged for; empty: the "
        "certificate says it",
        group=IDENTITY,
        default=None,
        file=True,
    )

    def sni(self) -> str:
        """The name the server must prove."""
        return self.server_name or self.server.host

    @property
    def token(self) -> str | None:
        """The token's path as the carrier takes it."""
        return None if self.token_file is None else str(self.token_file)

    def check(self) -> Iterator[Rule]:
        yield from RoleSettings.check(self)
        if (self.tls_certificate is None) != (self.tls_key is None):
            yield Rule(("tls_certificate", "tls_key"), "one without the other: give both, or none and a `token_file`")
        elif self.token_file is None and self.tls_certificate is None:
            text = "nothing says who we are: give a certificate and its key, or a `token_file`"
            yield Rule(("tls_certificate", "tls_key", "token_file"), text)
        elif self.token_file is not None and self.tls_certificate is not None:
            yield Rule(("tls_certificate", "token_file"), "both say who we are: leave one")
