"""The image, as far as it can be looked at without building it: linted, locked, and nothing copied that the build does not see."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from lab.helm import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def locked(name: str) -> dict[str, str]:
    """Package -> version; every one with hashes."""
    entries = re.split(r"\n(?=\S)", (ROOT / name).read_text().replace("\\\n", ""))
    found = {}
    for entry in filter(str.strip, entries):
        match = re.match(r"([a-z0-9-]+)==(\S+)", entry)
        assert match and "--hash=sha256:" in entry, entry[:60]
        found[match[1]] = match[2]
    return found


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_lock_has_what_the_project_asks_for() -> None:
    """Stale after a change of pyproject.toml: run scripts/lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {
        "requirements.lock": project["project"]["dependencies"],
        "requirements-build.lock": project["build-system"]["requires"],
    }
    for name, requirements in wanted.items():
        versions = locked(name)
        for requirement in map(Requirement, requirements):
            assert requirement.specifier.contains(versions[requirement.name.lower()]), requirement


def test_what_is_copied_is_in_the_build_context() -> None:
    seen = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]
    ]
    assert set(copied) == set(seen)
    assert all((ROOT / path).exists() for path in copied)


def test_every_package_of_the_distribution_is_copied() -> None:
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    for package in {name.split(".")[0] for name in include}:
        assert f"COPY {package} {package}\n" in DOCKERFILE


def test_it_is_not_root_unless_it_is_told_so() -> None:
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1] == "65532:65532"
    assert "--require-hashes" in DOCKERFILE and "wgconf]" not in DOCKERFILE
