"""The scaffold around every process: named and guarded tasks, signals, and one way from an error to an exit code.

A daemon is one coroutine function that takes a `stop` event. SIGTERM and SIGINT set the event; a second signal cancels
the coroutine. Whatever was started with `spawn` and still runs when it returns is cancelled and awaited.

Imports nothing heavy: the carrier process uses this module too and has to stay small.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from agent.errors import RhizomeError
from agent.exits import Exit

T = TypeVar("T")

log = logging.getLogger("rhizome.run")

#: How long cancelled tasks and a stopping daemon may take to clean up before they are given up.
GRACE_S = 5.0

_tasks: set[asyncio.Task[Any]] = set()
#: Completed (always with an error) by the first vital task that ends on its own.
_lost: ContextVar[asyncio.Future[None] | None] = ContextVar("rhizome_lost", default=None)


class TaskEnded(RuntimeError):
    """A vital task returned although nobody asked it to: a bug."""


def spawn(coro: Coroutine[Any, Any, T], *, name: str, vital: bool = False) -> asyncio.Task[T]:
    """Start a task that cannot be lost: it is kept alive until it ends, and an error it ends with is logged at once.

    `vital=True`: the daemon is of no use without it. When it ends other than by being cancelled, `run_daemon` stops
    and exits with its error; the data plane stays, and whoever supervises the process starts a fresh one.
    """
    task = asyncio.get_running_loop().create_task(coro, name=name)
    _tasks.add(task)
    lost = _lost.get() if vital else None
    task.add_done_callback(lambda done: _ended(done, lost))
    return task


def _ended(task: asyncio.Task[Any], lost: asyncio.Future[None] | None) -> None:
    _tasks.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    name = task.get_name()
    if isinstance(error, RhizomeError):
        log.warning("task %s ended: %s", name, error, extra={"event": "task.failed", "task": name})
    elif error is not None:
        log.error("task %s crashed", name, exc_info=error, extra={"event": "task.crashed", "task": name})
    if lost is not None and not lost.done():
        lost.set_exception(error or TaskEnded(f"the vital task {name} ended by itself"))


def run_daemon(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run `main(stop)` until it returns and answer with the exit code of the process. Never raises."""
    interrupted: list[signal.Signals] = []

    async def run() -> None:
        await _supervise(main, interrupted)

    def body() -> int:
        with asyncio.Runner() as runner:
            runner.run(run())
        return Exit.INTERRUPTED if signal.SIGINT in interrupted else Exit.OK

    return run_command(body)


async def _supervise(main: Callable[[asyncio.Event], Awaitable[None]], received: list[signal.Signals]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    lost: asyncio.Future[None] = loop.create_future()
    _lost.set(lost)

    async def body() -> None:
        await main(stop)

    running = loop.create_task(body(), name="main")

    def on_signal(number: signal.Signals) -> None:
        log.info("stopping on %s", number.name, extra={"event": "daemon.stopping", "reason": number.name})
        if received:
            running.cancel()
        received.append(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    # What was imported lives as long as the process: the collector need not walk it again and again.
    gc.collect()
    gc.freeze()
    try:
        await asyncio.wait((running, lost), return_when=asyncio.FIRST_COMPLETED)
        if lost.done() and not running.done() and not stop.is_set():
            stop.set()
            await asyncio.wait((running,), timeout=GRACE_S)
            lost.result()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        stop.set()
        running.cancel()
        await cancel_all()
        if lost.done():
            lost.exception()
        gc.unfreeze()


async def cancel_all() -> None:
    """Cancel every spawned task of the running loop and wait for them, at most GRACE_S; stuck ones are named in the log."""
    loop = asyncio.get_running_loop()
    pending = {task for task in _tasks if task.get_loop() is loop and task is not asyncio.current_task()}
    for task in pending:
        task.cancel()
    if pending:
        _, stuck = await asyncio.wait(pending, timeout=GRACE_S)
        for task in stuck:
            log.error("task %s does not stop", task.get_name(), extra={"event": "task.stuck", "task": task.get_name()})


def run_command(body: Callable[[], int]) -> int:
    """Run a synchronous body and turn what it raises into an exit code and words on stderr. Never raises.

    A RhizomeError is its message, an unforeseen exception its traceback. SystemExit passes (argparse has spoken).
    """
    try:
        return body()
    except RhizomeError as exc:
        complain(str(exc))
        return exc.exit_code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`... | head`): nobody is left to tell, and the interpreter must not try.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except Exception:
        complain("this is a bug in Rhizome, please report it with the lines below")
        traceback.print_exc()
        return Exit.BUG


def complain(message: str) -> None:
    """One line on stderr per line of `message`, each with the name of the program in front."""
    script = Path(sys.argv[0])
    program = (script.parent.name if script.name == "__main__.py" else script.name) or "rhizome"
    for line in message.splitlines() or [""]:
        sys.stderr.write(f"{program}: error: {line}\n")
    sys.stderr.flush()
