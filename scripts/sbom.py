#!/usr/bin/env python3
"""Write the bill of materials of an image, as CycloneDX JSON, out of its root file system.

    python3 -m scripts.sbom ROOT        needs `go` for what is in Go programs; nothing of the image is run

ROOT is what `docker export $(docker create rhizome) | tar -x -C ROOT` gives. Listed are Debian packages, Python distributions and
interpreters, and Go programs with the modules in them. `unaccounted` finds the programs and libraries that nothing listed accounts for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

Component = dict[str, Any]

#: Where programs and libraries are; the rest is configuration, state and mounts.
PLACES = ("usr", "opt")
#: Files of ours that are copied into the image beside the Python distribution, and what `venv` and Debian's tools make.
OURS = re.compile(r"usr/local/bin/supervise")
MADE = re.compile(
    r"opt/rhizome/(bin/(python[0-9.]*|[Aa]ctivate[.a-zA-Z0-9]*)|pyvenv\.cfg|\.gitignore)|usr/share/info/dir(\.old)?"
    r"|usr/lib/([a-z0-9_]+-linux-gnu/)?(gconv/gconv-modules\.cache|locale/.*)|usr/share/(mime|icons|applications)/.*cache"
)
#: Of an interpreter in /usr/local, which has no list of its files.
INTERPRETER = re.compile(
    r"usr/local/(lib/libpython3|lib/python3[0-9.]*/(?!site-packages/)|lib/pkgconfig/|include/python3|bin/(python|pydoc|idle)|share/man/)"
)
GO_MAGIC = b"\xff Go buildinf:"


def _component(kind: str, name: str, version: str, purl: str, **more: Any) -> Component:
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl, **more}


def debian(root: Path) -> Iterator[Component]:
    """Packages that dpkg says are installed."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', (root / "etc/os-release").read_text(), re.MULTILINE))
    for entry in (root / "var/lib/dpkg/status").read_text().split("\n\n"):
        fields = dict(re.findall(r"^([A-Z][\w-]*): (.*)$", entry, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            name, version, machine = fields["Package"], fields["Version"], fields["Architecture"]
            about = f"arch={machine}&distro=debian-{release['VERSION_ID']}"
            yield _component("library", name, version, f"pkg:deb/debian/{quote(name)}@{quote(version)}?{about}")


def _installed(root: Path) -> Iterator[Distribution]:
    for place in PLACES:
        for found in sorted((root / place).rglob("*-packages")):
            yield from distributions(path=[str(found)])


def _name(found: Distribution) -> str:
    return re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()


def _pypi(found: Distribution) -> str:
    return f"pkg:pypi/{_name(found)}@{quote(found.version)}"


def python(root: Path) -> Iterator[Component]:
    """Distributions of every environment, and interpreters that are no Debian package, as in the official image."""
    for found in _installed(root):
        words = found.metadata.json.get("license_expression")
        licences = {"licenses": [{"expression": words}]} if words else {}
        yield _component("library", _name(found), found.version, _pypi(found), **licences)
    for header in (root / "usr/local/include").glob("python*/patchlevel.h"):
        if version := re.search(r'PY_VERSION\s+"([^"]+)"', header.read_text()):
            yield _component("application", "python", version[1], f"pkg:generic/python@{version[1]}")


def _go_programs(root: Path) -> Iterator[Path]:
    for path in sorted((root / "usr/local/bin").iterdir()):
        if path.is_file() and not path.is_symlink() and GO_MAGIC in path.read_bytes():
            yield path


def go(root: Path, program: str = "go") -> Iterator[Component]:
    """Programs of Go, the modules that are linked into them, and the standard library."""
    for path in _go_programs(root):
        done = subprocess.run([program, "version", "-m", str(path)], capture_output=True, text=True, check=True)
        said, *lines = done.stdout.splitlines()
        version = said.rpartition(" go")[2]
        place = {"properties": [{"name": "rhizome:path", "value": str(path.relative_to(root))}]}
        for line in lines:
            word, *found = line.split()
            if word in ("mod", "dep"):
                purl = f"pkg:golang/{found[0]}@{quote(found[1])}"
                kind = "application" if word == "mod" else "library"
                yield _component(kind, found[0], found[1], purl, **(place if word == "mod" else {}))
        yield _component("library", "stdlib", version, f"pkg:golang/stdlib@{version}")


def bill(root: Path, go_program: str = "go") -> dict[str, Any]:
    """The whole bill. The same root file system gives the same bytes."""
    found = {part["purl"]: part for part in (*debian(root), *python(root), *go(root, go_program))}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "rhizome", "bom-ref": "rhizome"}},
        "components": [found[purl] for purl in sorted(found)],
    }


def _owned(root: Path, listed: set[str]) -> Iterator[str]:
    """Files of what is listed, by the real names of the directories they are in."""

    def real(name: str) -> str:
        path = root / name.lstrip("/")
        return os.path.relpath(path.parent.resolve() / path.name, root)

    names = {purl.partition("/debian/")[2].partition("@")[0] for purl in listed if purl.startswith("pkg:deb/")}
    for path in (root / "var/lib/dpkg/info").glob("*.list"):
        if quote(path.stem.partition(":")[0]) in names:
            yield from map(real, path.read_text().splitlines())
    for found in _installed(root):
        if _pypi(found) in listed:
            yield from (real(str(Path(str(found.locate_file(name))).relative_to(root))) for name in found.files or ())


def unaccounted(root: Path, known: dict[str, Any]) -> list[str]:
    """Regular files below /usr and /opt that belong to nothing in the bill."""
    root = root.resolve()
    listed = {part["purl"] for part in known["components"]}
    owned = {os.path.normpath(name) for name in _owned(root, listed)}
    owned |= {entry["value"] for part in known["components"] for entry in part.get("properties", ())}
    interpreter = any(purl.startswith("pkg:generic/python@") for purl in listed)
    missing = []
    for path in sorted(path for place in PLACES for path in (root / place).rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink() or not path.is_file() or name in owned or MADE.fullmatch(name) or OURS.fullmatch(name):
            continue
        if (
            path.parent.name == "__pycache__"
            and f"{path.parent.parent.relative_to(root)}/{path.stem.split('.')[0]}.py" in owned
        ):
            continue
        if interpreter and INTERPRETER.match(name):
            continue
        missing.append(name)
    return missing


if __name__ == "__main__":
    if len(sys.argv) != 2 or shutil.which("go") is None:
        sys.exit("usage: python3 -m scripts.sbom ROOT, where `go` is in the PATH")
    json.dump(bill(Path(sys.argv[1])), sys.stdout, indent=1)
    print()
