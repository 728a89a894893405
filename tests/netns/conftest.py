"""Labs for the tests in this folder. Every test here needs root and says so when it is not."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest

from lab import Lab
from tests.netns.firewall_landscape import Landscape

_FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.fail("tests/netns makes network namespaces and must be run as root", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture
def make_lab(request: pytest.FixtureRequest) -> Iterator[type[Lab]]:
    """Starts a lab that is gone after the test. When the test fails, the end of every log is part of its output."""
    labs: list[Lab] = []
    with ExitStack() as stack:

        def make(*args: Any, **kwargs: Any) -> Lab:
            lab = stack.enter_context(Lab(*args, **kwargs))
            labs.append(lab)
            return lab

        yield cast(type[Lab], make)  # it takes what Lab takes
        if request.node.stash.get(_FAILED, False):
            for lab in labs:
                for machine in lab.machines.values():
                    for process in machine.processes:
                        print(f"--- {machine.name} {process.name} (exit code {process.exit_code})\n{process.tail(40)}")


@pytest.fixture(scope="module")
def landscape() -> Iterator[Landscape]:
    with ExitStack() as stack:
        yield Landscape(stack)


@pytest.fixture
def land(landscape: Landscape) -> Iterator[Landscape]:
    """The firewall tests' four hosts, as new."""
    with landscape.fresh():
        yield landscape
