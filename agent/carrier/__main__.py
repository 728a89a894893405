"""`python -m agent.carrier --socket PATH`: started by a daemon, outlives it, ends when it is told Stop or by SIGTERM."""

from __future__ import annotations

import sys

from agent.carrier.process import run
from agent.companion.detach import companion_main


def main() -> int:
    return companion_main("agent.carrier", __doc__, run)


if __name__ == "__main__":
    sys.exit(main())
