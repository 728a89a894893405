"""When a client takes new keys: a second device beside the first, over to it when packets cross, and then the first one goes. Pure.

    one leg --the server names a successor--> two, packets by the old one --canary crosses--> two, packets by the new one
       ^                                          |                                                 |
       +------ no canary within PATIENCE_S: ------+                                                 |
       |       again after RETRY_S; or the server                                                   |
       |       wants it no more                                                                     |
       +------ the server has said that it sends by the new one too, and GRACE_S have passed -------+

It is decided from what there is, so a client that starts anew in the middle goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

#: A canary that crossed both ways within so long: packets cross.
FRESH_S = 2.0
#: A new device on which no canary crosses by then goes again, and is tried again after RETRY_S.
PATIENCE_S = 30.0
RETRY_S = 300.0
#: What is on its way by the old device, at the longest: a stream's queue holds less.
GRACE_S = 5.0


class Act(Enum):
    NOTHING = "nothing"
    MAKE = "make a second device"
    MOVE = "send by the new device"
    GIVE_UP = "remove the new device, which does not work"
    TURN_BACK = "remove the new device, which is not wanted any more"
    LEAVE = "remove the old device"


@dataclass(frozen=True, slots=True)
class Beside:
    """The leg that packets are not sent by, which is there `since`. `is_old`: packets were sent by it until then. `target` is the
    server's device that it leads to, empty while that is not known; `canary_age_s` None for never; `refused`: the server said no."""

    since: float
    is_old: bool
    target: str = ""
    canary_age_s: float | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Situation:
    """`granted`: the leg in use has a grant, which names `successor`. `confirmed`: it was given since packets are sent by that leg;
    `canary_age_s` is that leg's. `not_before` is when a new device may be tried."""

    granted: bool
    successor: str
    canary_age_s: float | None
    confirmed: bool
    beside: Beside | None
    not_before: float = 0.0


def decide(seen: Situation, now: float) -> Act:
    """Times are monotonic seconds."""
    beside = seen.beside
    if beside is None:
        return Act.MAKE if seen.successor and now >= seen.not_before else Act.NOTHING
    if beside.is_old:
        done = seen.confirmed and now >= beside.since + GRACE_S and _fresh(seen.canary_age_s)
        return Act.LEAVE if done else Act.NOTHING
    wanted = not seen.granted or (seen.successor != "" and beside.target in ("", seen.successor))
    if not wanted:
        return Act.TURN_BACK
    if beside.refused or now >= beside.since + PATIENCE_S:
        return Act.GIVE_UP
    return Act.MOVE if beside.target and _fresh(beside.canary_age_s) else Act.NOTHING


def _fresh(age_s: float | None) -> bool:
    return age_s is not None and age_s < FRESH_S
