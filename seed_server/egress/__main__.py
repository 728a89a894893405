"""`python -m seed_server.egress --socket PATH`: started by the seed server's daemon, outlives it, drains on Stop and SIGTERM."""

from __future__ import annotations

import sys

from agent.companion.detach import companion_main
from seed_server.egress.process import run


def main() -> int:
    return companion_main("seed_server.egress", __doc__, run)


if __name__ == "__main__":
    sys.exit(main())
