"""`rhizome-agent drain` with a real egress process."""

import asyncio
import os
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.exits import Exit
from seed_server.egress.api import EgressConfig, Ready, UnixListen
from seed_server.egress.client import EgressClient


def start(directory: Path) -> int:
    """An egress process without a daemon; its process id."""

    async def attach() -> int:
        config = EgressConfig((), None, UnixListen(str(directory / "proxy.sock"), None, None, 0o600), ("10.0.0.0/8",))
        client = await EgressClient(directory / "x.egress", config).attach()
        ready = await anext(client.events())
        await client.detach()
        assert isinstance(ready, Ready)
        return ready.pid

    return asyncio.run(attach())


def test_it_waits_for_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o700)
    pid = start(tmp_path)
    assert main(["drain", "--runtime-dir", str(tmp_path), "--seconds", "5"]) == Exit.OK
    assert capsys.readouterr().out == "drained the egress proxy of x\n"
    assert not list(tmp_path.iterdir())
    assert os.waitpid(pid, 0) == (pid, 0)
    assert main(["drain", "--runtime-dir", str(tmp_path)]) == Exit.OK
    assert capsys.readouterr().out == "no egress proxy runs here\n"
