"""The control vocabulary that client and server exchange in control capsules, as JSON objects of at most 64 KiB.

`parse` turns text from the network into one of these values or raises BadMessage; it never raises anything else. Unknown
fields are ignored, so a newer peer may say more; an unknown `type` becomes Unknown and is ignored by both sides.
Times on the wire are durations in seconds, never clock readings: the two clocks may disagree and may be stepped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from agent.errors import BadMessage
from agent.fields import flag, integer, items, matching, number, only_text, prefixes, string, wrong
from agent.model import Endpoint, IPAddress, IPNetwork, PresharedKey, PublicKey

#: The versions of this vocabulary that we speak. A peer whose range does not meet ours is refused in words.
VERSION_MIN = 1
VERSION_MAX = 1

MESSAGE_MAX_BYTES = 64 * 1024
LIFETIME_MAX_S = 3600.0
SILENCE_MAX_S = 86400.0

#: The two ways to the other side, and the names of the devices whose packets take them.
STREAM, DIRECT = "stream", "direct"

#: A JSON Web Token of ours (RFC 7515 section 3.1), and the SHA-256 of what it replaces.
_CREDENTIAL = re.compile(r"[A-Za-z0-9_-]{1,1024}(\.[A-Za-z0-9_-]{1,2048}){2}", re.ASCII)
_DIGEST = re.compile("[0-9a-f]{64}", re.ASCII)


_TARGET = re.compile(r"wg-[0-9a-f]{8}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client could carry, by kind. The server decides what of it the client will carry."""

    nodes: tuple[IPNetwork, ...] = ()
    pods: tuple[IPNetwork, ...] = ()
    services: tuple[IPNetwork, ...] = ()

    def all(self) -> tuple[IPNetwork, ...]:
        return self.nodes + self.pods + self.services


@dataclass(frozen=True, slots=True)
class Enroll:
    """Client: these are my WireGuard public keys, one per device ("stream", and perhaps "direct"), and what I could carry.

    Who I am is not said here: the certificate or token of the stream says it. `path` is the device that I send by,
    `process` a random word of this process, by which two that show one credential are told from one that was restarted.
    `once`: I am going to leave, and my device shall be kept without me; the only key is then that of the direct path.
    `standby`: I have another device that I send by, and this one only answers (docs/adr/0018-wireguard-keys.md).
    """

    public_keys: tuple[tuple[str, PublicKey], ...]
    offer: Offer
    version_min: int = VERSION_MIN
    version_max: int = VERSION_MAX
    software: str = ""
    path: str = ""
    process: str = ""
    once: bool = False
    standby: bool = False


@dataclass(frozen=True, slots=True)
class Direct:
    """The server's second device, for those who reach it by UDP without the stream: its key, epoch and own addresses in the
    tunnel, where it listens (in order of preference), and this client's preshared key for it."""

    public_key: PublicKey
    epoch: str
    servers: tuple[IPAddress, ...]
    endpoints: tuple[Endpoint, ...]
    preshared_key: PresharedKey | None = None


@dataclass(frozen=True, slots=True)
class Credential:
    """What a client that enrolled with a one-time token shows from now on. `replaces` is the SHA-256 of what its stream was
    opened with: in whose place the client keeps it, and in no other's."""

    token: str = field(repr=False)
    replaces: str


@dataclass(frozen=True, slots=True)
class Grant:
    """Server: you are in, on these terms, for `lifetime_s` (at most an hour). Replaces any earlier grant.

    `epoch` names the incarnation of the server's device: a new one means that all sessions are gone, so the client adds
    the peer anew and handshakes at once. `tunnel_networks` is what the client routes into the tunnel and accepts packets
    from; `servers` are the server's own addresses there, in order of preference. `carries` is what of the offer the client
    may be asked to carry, alone or in turn with others, `refused` the rest with the reason. `routes` is what of the shoot
    a sidecar may reach. `silence_s` is said to those who enrolled with `once`: how long their device may be without a handshake.
    `credential` is for those whom this server gives one, when it is time for a newer one. `target` is the name of the server's device
    that this stream leads to, where there are two, and `successor` of the one with the next key: come over.
    """

    version: int
    epoch: str
    public_keys: tuple[tuple[str, PublicKey], ...]
    addresses: tuple[IPAddress, ...]
    servers: tuple[IPAddress, ...]
    tunnel_networks: tuple[IPNetwork, ...]
    carries: tuple[IPNetwork, ...]
    refused: tuple[tuple[str, str], ...]
    mtu_bytes: int
    persistent_keepalive_s: int
    lifetime_s: float
    preshared_key: PresharedKey | None = None
    routes: tuple[IPNetwork, ...] = ()
    direct: Direct | None = None
    silence_s: float | None = None
    credential: Credential | None = None
    target: str = ""
    successor: str = ""

    def incarnations(self) -> dict[str, tuple[PublicKey, str]]:
        """Path -> key and epoch of the server's device."""
        found = {name: (key, self.epoch) for name, key in self.public_keys}
        return found | ({DIRECT: (self.direct.public_key, self.direct.epoch)} if self.direct else {})


@dataclass(frozen=True, slots=True)
class Refuse:
    """Server: no. `retry_after_s` None: do not come back until something is changed (a person reads `text`)."""

    reason: str
    text: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Client: what has changed since enroll; the whole offer again. `path` is the device that I send by now, `health` a short
    sentence for the server's status. `standby` as in an enroll."""

    offer: Offer
    path: str = ""
    health: str = ""
    standby: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """Either side: I am going away; move now."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message type of a newer peer. Ignored."""

    type: str


Message = Enroll | Grant | Refuse | Facts | Drain | Unknown


def encode(message: Message) -> str:
    """One line of JSON. Contains the preshared key and the credential of a grant: the text travels inside TLS and is never logged."""
    return json.dumps(_BODY[type(message)](message), separators=(",", ":"))


def parse(text: str) -> Message:
    """Raises BadMessage, saying which field is wrong; the offending value is not repeated at length."""
    if len(text.encode("utf-8", "surrogatepass")) > MESSAGE_MAX_BYTES:
        raise BadMessage(f"control message: longer than {MESSAGE_MAX_BYTES} bytes")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadMessage("control message: not JSON") from exc
    if not isinstance(body, dict):
        raise BadMessage("control message: not a JSON object")
    kind = string(body, "type", 64)
    reader = _READ.get(kind)
    return reader(body) if reader else Unknown(kind)


# Writing


def _offer_body(offer: Offer) -> dict[str, Any]:
    return {"nodes": _texts(offer.nodes), "pods": _texts(offer.pods), "services": _texts(offer.services)}


def _texts(values: tuple[Any, ...]) -> list[str]:
    return [str(value) for value in values]


def _enroll_body(m: Enroll) -> dict[str, Any]:
    return {
        "type": "enroll",
        "versions": [m.version_min, m.version_max],
        "software": m.software,
        "process": m.process,
        "path": m.path,
        "once": m.once,
        "standby": m.standby,
        "public_keys": {name: str(key) for name, key in m.public_keys},
        "offer": _offer_body(m.offer),
    }


def _grant_body(m: Grant) -> dict[str, Any]:
    return {
        "type": "grant",
        "version": m.version,
        "epoch": m.epoch,
        "public_keys": {name: str(key) for name, key in m.public_keys},
        "addresses": _texts(m.addresses),
        "servers": _texts(m.servers),
        "tunnel_networks": _texts(m.tunnel_networks),
        "carries": _texts(m.carries),
        "routes": _texts(m.routes),
        "refused": [list(pair) for pair in m.refused],
        "mtu": m.mtu_bytes,
        "keepalive_s": m.persistent_keepalive_s,
        "lifetime_s": m.lifetime_s,
        "preshared_key": m.preshared_key.reveal() if m.preshared_key else None,
        "direct": _direct_body(m.direct) if m.direct else None,
        "silence_s": m.silence_s,
        "target": m.target,
        "successor": m.successor,
        "credential": {"token": m.credential.token, "replaces": m.credential.replaces} if m.credential else None,
    }


def _direct_body(m: Direct) -> dict[str, Any]:
    return {
        "public_key": str(m.public_key),
        "epoch": m.epoch,
        "servers": _texts(m.servers),
        "endpoints": [[str(e.address), e.port] for e in m.endpoints],
        "preshared_key": m.preshared_key.reveal() if m.preshared_key else None,
    }


_BODY: Mapping[type, Callable[[Any], dict[str, Any]]] = {
    Enroll: _enroll_body,
    Grant: _grant_body,
    Refuse: lambda m: {"type": "refuse", "reason": m.reason, "text": m.text, "retry_after_s": m.retry_after_s},
    Facts: lambda m: {
        "type": "facts",
        "offer": _offer_body(m.offer),
        "path": m.path,
        "health": m.health,
        "standby": m.standby,
    },
    Drain: lambda m: {"type": "drain", "reason": m.reason},
    Unknown: lambda m: {"type": m.type},
}


# Reading


def _addresses(body: Mapping[str, Any], field: str) -> tuple[IPAddress, ...]:
    def read(value: Any) -> IPAddress:
        if "%" in only_text(value):
            raise ValueError
        return ip_address(value)

    return items(body, field, read, "a list of IP addresses")


def _public_keys(body: Mapping[str, Any]) -> tuple[tuple[str, PublicKey], ...]:
    value = body.get("public_keys")
    if not isinstance(value, dict) or not 0 < len(value) <= 4:
        raise wrong("public_keys", "an object of 1 to 4 keys")
    try:
        return tuple(sorted((name[:16], PublicKey.from_base64(only_text(key))) for name, key in value.items()))
    except (ValueError, TypeError) as exc:
        raise wrong("public_keys", "an object of WireGuard public keys in base64") from exc


def _offer(body: Mapping[str, Any]) -> Offer:
    value = body.get("offer", {})
    if not isinstance(value, dict):
        raise wrong("offer", "an object")
    return Offer(prefixes(value, "nodes"), prefixes(value, "pods"), prefixes(value, "services"))


def _read_enroll(body: Mapping[str, Any]) -> Enroll:
    versions = items(body, "versions", lambda v: integer({"versions": v}, "versions", 0, 1_000_000), "two integers")
    if len(versions) != 2 or versions[0] > versions[1]:
        raise wrong("versions", "a pair of integers, lowest first")
    if versions[0] > VERSION_MAX:
        # We cannot know what else is in it; only the range is needed to refuse it in words.
        return Enroll((), Offer(), versions[0], versions[1], string(body, "software"))
    return Enroll(
        _public_keys(body),
        _offer(body),
        versions[0],
        versions[1],
        string(body, "software"),
        string(body, "path", 16),
        string(body, "process", 64),
        flag(body, "once"),
        flag(body, "standby"),
    )


def _read_grant(body: Mapping[str, Any]) -> Grant:
    def pair(value: Any) -> tuple[str, str]:
        first, second = value
        return string({"": first}, ""), string({"": second}, "")

    return Grant(
        version=integer(body, "version", VERSION_MIN, VERSION_MAX),
        epoch=string(body, "epoch", 64),
        public_keys=_public_keys(body),
        addresses=_addresses(body, "addresses"),
        servers=_addresses(body, "servers"),
        tunnel_networks=prefixes(body, "tunnel_networks"),
        carries=prefixes(body, "carries"),
        refused=items(body, "refused", pair, "a list of pairs of text"),
        mtu_bytes=integer(body, "mtu", 1280, 9000),
        persistent_keepalive_s=integer(body, "keepalive_s", 0, 65535),
        lifetime_s=number(body, "lifetime_s", 0.0, LIFETIME_MAX_S),
        preshared_key=_preshared_key(body),
        routes=prefixes(body, "routes"),
        direct=_direct(body),
        silence_s=number(body, "silence_s", 0.0, SILENCE_MAX_S) if body.get("silence_s") is not None else None,
        credential=_credential(body),
        target=matching(body, "target", _TARGET, "the name of a device"),
        successor=matching(body, "successor", _TARGET, "the name of a device"),
    )


def _preshared_key(body: Mapping[str, Any]) -> PresharedKey | None:
    psk = body.get("preshared_key")
    try:
        return PresharedKey.from_base64(only_text(psk)) if psk is not None else None
    except (ValueError, TypeError) as exc:
        raise wrong("preshared_key", "a WireGuard key in base64") from exc


def _credential(body: Mapping[str, Any]) -> Credential | None:
    value = body.get("credential")
    if value is None:
        return None
    try:
        token, replaces = only_text(value["token"]), only_text(value["replaces"])
    except (TypeError, KeyError) as exc:
        raise wrong("credential", "an object of a token and what it replaces") from exc
    if not _CREDENTIAL.fullmatch(token) or not _DIGEST.fullmatch(replaces):
        raise wrong("credential", "a JSON Web Token and a SHA-256")
    return Credential(token, replaces)


def _direct(body: Mapping[str, Any]) -> Direct | None:
    def endpoint(value: Any) -> Endpoint:
        address, port = value
        return Endpoint(ip_address(only_text(address)), integer({"": port}, "", 1, 65535))

    value = body.get("direct")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong("direct", "an object")
    try:
        public_key = PublicKey.from_base64(only_text(value.get("public_key")))
    except (ValueError, TypeError) as exc:
        raise wrong("direct.public_key", "a WireGuard public key in base64") from exc
    return Direct(
        public_key=public_key,
        epoch=string(value, "epoch", 64),
        servers=_addresses(value, "servers"),
        endpoints=items(value, "endpoints", endpoint, "a list of [address, port]"),
        preshared_key=_preshared_key(value),
    )


def _read_refuse(body: Mapping[str, Any]) -> Refuse:
    later = number(body, "retry_after_s", 0.0, 86400.0) if body.get("retry_after_s") is not None else None
    return Refuse(string(body, "reason", 64), string(body, "text"), later)


_READ: Mapping[str, Callable[[Mapping[str, Any]], Message]] = {
    "enroll": _read_enroll,
    "grant": _read_grant,
    "refuse": _read_refuse,
    "facts": lambda body: Facts(_offer(body), string(body, "path"), string(body, "health"), flag(body, "standby")),
    "drain": lambda body: Drain(string(body, "reason")),
}
