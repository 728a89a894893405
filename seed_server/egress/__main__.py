"""`python -m seed_server.egress --socket PATH`: started by the seed server's daemon, outlives it, drains on Stop and SIGTERM."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from agent.companion.detach import detach_from_starter
from agent.run import run_daemon
from seed_server.egress.process import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m seed_server.egress", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="the Unix socket to listen on for the daemon")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--log-format", default="json", choices=("json", "text"))
    arguments = parser.parse_args()
    detach_from_starter("egress", arguments.log_level, arguments.log_format)
    return run_daemon(partial(run, arguments.socket.absolute()))


if __name__ == "__main__":
    sys.exit(main())
