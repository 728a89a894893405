"""Whether another firewall of this host drops what ours lets out of the tunnel. Pure.

Our table can only forbid: a packet that it accepts meets the host's other tables next, and a FORWARD chain with the policy
DROP is common. Nobody would be told, since the canary needs no forwarding. So we count what we let in, and what is left
of it behind everybody else's chains (agent.firewall).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

WINDOW_S = 60.0
#: Fewer may be on their way between the two counts.
DROPPED_MIN = 3


class Passage:
    """The counts of the last WINDOW_S."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()  # time, opened, passed

    def note(self, counters: Mapping[str, int], now: float) -> None:
        """The table's counters as they are now; they begin anew when the table is replaced."""
        opened, passed = counters.get("opened", 0), counters.get("passed", 0)
        if self._seen and opened < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, opened, passed))
        while self._seen[0][0] < now - WINDOW_S:
            self._seen.popleft()

    @property
    def dropped(self) -> tuple[int, int]:
        """(packets that were to open a connection and were dropped by somebody else, all such packets) of the window."""
        if not self._seen:
            return 0, 0
        (_, opened, passed), (_, opened_now, passed_now) = self._seen[0], self._seen[-1]
        return max(0, opened_now - opened - (passed_now - passed)), opened_now - opened

    def trouble(self, ifname: str) -> str:
        """What to say about it; empty when nobody drops anything."""
        dropped, opened = self.dropped
        if dropped < DROPPED_MIN:
            return ""
        return (
            f"another firewall of this host dropped {dropped} of {opened} new connections out of the tunnel in the last minute: "
            f"let its INPUT and FORWARD chains accept what comes in by {ifname}"
        )
