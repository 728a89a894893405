"""`rhizome-agent sidecar`: the one sub-command that is a daemon. Its command line is a role's, made from its settings."""

from __future__ import annotations

from collections.abc import Sequence


def run_words(words: Sequence[str]) -> int:
    from agent.sidecar.main import run  # netlink and cryptography, only when it is used

    return run(words)
