"""Every test here needs root and the programs of scripts/kube-binaries, and says so when they are missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator

import pytest

from lab.kube.binaries import binary
from lab.kube.landscape import Landscape, Wiring
from lab.processes import LabError

#: What etcd and kube-apiserver write at the end of a connection, hundreds of times: nothing went wrong.
_COMMON = ("rejected connection on client endpoint", "use of closed network connection")

_MEASURED = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MEASURED] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[_MEASURED]:
        terminalreporter.section("measured")
        for line in config.stash[_MEASURED]:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def _needs() -> None:
    if os.geteuid() != 0:
        pytest.fail("tests/kube makes network namespaces and must be run as root", pytrace=False)
    try:
        for name in ("etcd", "kube-apiserver", "kubectl", "lab-kubelet"):
            binary(name)
    except LabError as exc:
        pytest.fail(str(exc), pytrace=False)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Puts a line into the summary at the end of the run."""
    return lambda text: request.config.stash[_MEASURED].append(f"{request.node.callspec.id}: {text}")


@pytest.fixture(scope="module", params=list(Wiring), ids=lambda wiring: wiring.value)
def landscape(request: pytest.FixtureRequest) -> Iterator[Landscape]:
    """One landscape per wiring for all tests of a file: they leave it as it was."""
    with Landscape(request.param) as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """When a test fails, the end of every log of its landscape is part of its report."""
    report = yield
    made = getattr(item, "funcargs", {}).get("landscape")
    if report.when == "call" and report.failed and isinstance(made, Landscape):
        for machine in made.lab.machines.values():
            for process in machine.processes:
                title = f"{machine.name} {process.name} (exit code {process.exit_code})"
                lines = [line for line in process.output().splitlines() if not any(word in line for word in _COMMON)]
                report.sections.append((title, "\n".join(lines[-30:])))
    return report
