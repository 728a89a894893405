"""The scaffold: no task is lost, no error is lost, and every way to end has its exit code."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Awaitable, Callable

import pytest

from agent import run
from agent.errors import ConfigError, HostError, RhizomeError, Unsupported
from agent.exits import Exit

Main = Callable[[asyncio.Event], Awaitable[None]]


async def fail(error: BaseException) -> None:
    raise error


async def until_cancelled(seen: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise


async def test_spawn_names_the_task_and_gives_its_result() -> None:
    async def answer() -> int:
        return 42

    task = run.spawn(answer(), name="answer")
    assert task.get_name() == "answer"
    assert await task == 42


async def test_spawn_keeps_the_task_alive_without_a_reference() -> None:
    """A waiting task and what it waits for refer only to each other: the collector would take both."""
    task = weakref.ref(run.spawn(until_cancelled([]), name="forgotten"))
    await asyncio.sleep(0)
    gc.collect()
    assert task() is not None
    await run.cancel_all()


async def test_a_crash_is_logged_with_name_and_traceback(caplog: pytest.LogCaptureFixture) -> None:
    task = run.spawn(fail(ValueError("boom")), name="relay")
    await asyncio.wait((task,))
    await asyncio.sleep(0)
    (record,) = [r for r in caplog.records if r.name == "rhizome.run"]
    assert record.levelno == logging.ERROR
    assert "relay" in record.getMessage()
    assert record.exc_info is not None and record.exc_info[1] is task.exception()


async def test_an_error_of_ours_is_one_line_without_traceback(caplog: pytest.LogCaptureFixture) -> None:
    await asyncio.wait((run.spawn(fail(HostError("no route")), name="apply"),))
    await asyncio.sleep(0)
    (record,) = [r for r in caplog.records if r.name == "rhizome.run"]
    assert record.levelno == logging.WARNING and not record.exc_info
    assert record.getMessage() == "task apply ended: no route"


async def test_cancelling_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    task = run.spawn(until_cancelled([]), name="idle")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    await asyncio.sleep(0)
    assert not caplog.records


async def test_a_stuck_task_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(run, "GRACE_S", 0.01)
    release = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()

    task = run.spawn(stubborn(), name="stubborn")
    await asyncio.sleep(0)
    await run.cancel_all()
    release.set()
    await asyncio.wait((task,))
    assert "task stubborn does not stop" in caplog.text


def kill_self(number: signal.Signals) -> Main:
    async def main(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stop.wait(), 5)

    return main


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, Exit.OK), (signal.SIGINT, Exit.INTERRUPTED)])
def test_a_signal_stops_the_daemon_in_order(number: signal.Signals, code: Exit) -> None:
    assert run.run_daemon(kill_self(number)) == code
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_second_signal_does_not_wait() -> None:
    seen: list[str] = []

    async def main(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await until_cancelled(seen)

    assert run.run_daemon(main) == Exit.OK
    assert seen == ["cancelled"]


def test_what_still_runs_is_cancelled_and_awaited() -> None:
    seen: list[str] = []

    async def main(stop: asyncio.Event) -> None:
        run.spawn(until_cancelled(seen), name="left over")
        await asyncio.sleep(0)

    assert run.run_daemon(main) == Exit.OK
    assert seen == ["cancelled"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RhizomeError("why\nnext"), Exit.FAILED),
        (ConfigError("a: b", "c: d"), Exit.USAGE),
        (Unsupported("no WireGuard"), Exit.UNSUPPORTED),
    ],
)
def test_an_error_of_ours_is_words_and_its_code(
    error: RhizomeError, code: Exit, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main(stop: asyncio.Event) -> None:
        raise error

    assert run.run_daemon(main) == code
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": error: ")[2] for line in lines] == str(error).splitlines()


def test_an_unforeseen_error_is_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    async def main(stop: asyncio.Event) -> None:
        raise KeyError("surprise")

    assert run.run_daemon(main) == Exit.BUG
    err = capsys.readouterr().err
    assert "bug in Rhizome" in err and "KeyError: 'surprise'" in err


@pytest.mark.parametrize(("error", "code"), [(HostError("gone"), Exit.FAILED), (ValueError("boom"), Exit.BUG)])
def test_the_daemon_ends_with_its_vital_task(error: Exception, code: Exit) -> None:
    stopped: list[bool] = []

    async def main(stop: asyncio.Event) -> None:
        run.spawn(fail(error), name="engine", vital=True)
        await stop.wait()
        stopped.append(True)

    assert run.run_daemon(main) == code
    assert stopped == [True]


def test_a_vital_task_that_returns_is_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    async def main(stop: asyncio.Event) -> None:
        run.spawn(asyncio.sleep(0), name="engine", vital=True)
        await stop.wait()

    assert run.run_daemon(main) == Exit.BUG
    assert "the vital task engine ended by itself" in capsys.readouterr().err


def test_a_vital_task_may_end_while_the_daemon_stops() -> None:
    async def main(stop: asyncio.Event) -> None:
        engine = run.spawn(stop.wait(), name="engine", vital=True)
        os.kill(os.getpid(), signal.SIGTERM)
        await engine
        await asyncio.sleep(0.01)

    assert run.run_daemon(main) == Exit.OK


def test_an_ordinary_task_may_fail() -> None:
    async def main(stop: asyncio.Event) -> None:
        await asyncio.wait((run.spawn(fail(ValueError("one connection")), name="connection"),))

    assert run.run_daemon(main) == Exit.OK


def test_a_reader_that_goes_away_is_no_bug() -> None:
    code = "from agent.run import run_command; import sys\n"
    code += "def body():\n    for _ in range(100000): print('y' * 80)\n    return 0\n"
    code += "sys.exit(run_command(body))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(10) == Exit.FAILED


def test_the_scaffold_imports_nothing_heavy() -> None:
    heavy = "{'aiohttp', 'cryptography', 'pyroute2', 'prometheus_client', 'lightkube', 'httpx2', 'wgconfig'}"
    code = f"import sys, agent.run; sys.exit(' '.join({heavy} & set(sys.modules)) or None)"
    subprocess.run([sys.executable, "-c", code], check=True)
