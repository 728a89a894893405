"""A device as wg-quick(8) text for people, without its private and preshared keys.

The only importer of `wgconfig`, which is AGPL-3.0-or-later and therefore an optional extra that no daemon needs: see
docs/adr/0004-wgconfig-licence.md.
"""

from __future__ import annotations

from typing import Any

from agent.errors import Unsupported
from agent.model import DeviceState, LinkState, Peer

_HIDDEN = "# {}: in the device (never exported)"


def export(state: DeviceState, link: LinkState | None = None) -> str:
    """The text of a configuration file; peers by public key, allowed-ips in numeric order.

    `link` adds address and MTU. Raises Unsupported when wgconfig is not installed.
    """
    interface = _new()
    if link is not None:
        if link.addresses:
            ordered = sorted(link.addresses, key=lambda a: (a.version, a))
            interface.add_attr(None, "Address", ", ".join(map(str, ordered)))
        interface.add_attr(None, "MTU", link.mtu_bytes)
    if state.listen_port:
        interface.add_attr(None, "ListenPort", state.listen_port)
    if state.fwmark:
        interface.add_attr(None, "FwMark", f"{state.fwmark:#x}")
    lines = list(interface.lines)
    if state.private_key is not None:
        lines.insert(1, _HIDDEN.format("PrivateKey"))
    for peer in sorted(state.peers, key=lambda peer: peer.public_key):
        lines += _peer(peer)
    return "\n".join(lines) + "\n"


def _peer(peer: Peer) -> list[str]:
    """A section of its own: wgconfig parses its whole text again after every change, which a thousand peers would feel."""
    config = _new()
    key = str(peer.public_key)
    config.add_peer(key)
    if peer.allowed_ips:
        ordered = sorted(peer.allowed_ips, key=lambda n: (n.version, n))
        config.add_attr(key, "AllowedIPs", ", ".join(map(str, ordered)))
    if peer.endpoint is not None:
        config.add_attr(key, "Endpoint", str(peer.endpoint))
    if peer.persistent_keepalive_s:
        config.add_attr(key, "PersistentKeepalive", peer.persistent_keepalive_s)
    lines = list(config.lines)[1:]  # without [Interface]
    return [*lines, _HIDDEN.format("PresharedKey")] if peer.preshared_key is not None else lines


def _new() -> Any:
    try:
        from wgconfig import WGConfig
    except ImportError as exc:
        raise Unsupported("wgconf needs the optional package wgconfig: pip install 'rhizome[wgconf]'") from exc
    return WGConfig()
