"""Ends what is open to a part of the shoot that cannot be reached any more, so that whoever waits for it hears of it.

kube-apiserver keeps connections to kubelets and webhooks for later requests, and sets no deadline for most answers: without
this a kubectl would hang until TCP gives up, a quarter of an hour later. A target that is well and does not read is no such case.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import termios
from collections.abc import Callable

from agent.model import IPAddress
from seed_server.egress.ends import Plain
from seed_server.egress.pump import Pump, Tunnel

#: Something was said to the shoot, and no packet gets there for so long: whoever said it waits.
WAITING_S = 5.0
#: Nobody waits: streams of hours outlive a short outage. But kube-apiserver would send a request on a kept connection, and
#: its user would be told of its end alone.
SILENT_S = 20.0


def end_lost(pump: Pump, fault: Callable[[IPAddress], str], now: float) -> int:
    """How many tunnels were ended. `fault` says why an address cannot be reached; to be called every second or so."""
    ended = 0
    for tunnel in pump.all():
        if tunnel.address is None or not fault(tunnel.address):
            tunnel.lost_at = None
        elif tunnel.lost_at is None:
            tunnel.lost_at = now
        elif now - tunnel.lost_at >= (WAITING_S if _is_unheard(tunnel) else SILENT_S):
            pump.remove(tunnel, Plain.abort)
            ended += 1
    return ended


def _is_unheard(tunnel: Tunnel) -> bool:
    """Whether the target has not acknowledged all that was sent to it (tcp(7), SIOCOUTQ), or more waits behind that."""
    unheard = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(tunnel.target.sock, termios.TIOCOUTQ, unheard)
    return bool(unheard[0]) or bool(tunnel.up.pending)
