"""The bill of materials of a small root file system. (`make image-proof` holds the real image's against the image.)"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.sbom import GO_MAGIC, bill, unaccounted

STATUS = """\
Package: tini
Status: install ok installed
Architecture: amd64
Version: 0.19.0-3+b8
Description: a small init
 of one Version: 9

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0
"""
FILES = {
    "etc/os-release": 'VERSION_ID="13"\n',
    "var/lib/dpkg/status": STATUS,
    "var/lib/dpkg/info/tini.list": "/.\n/bin\n/bin/tini\n",
    "usr/bin/tini": "x",
    "opt/rhizome/bin/activate": "x",
    "opt/rhizome/lib/python3.13/site-packages/Some_Lib-1.2.dist-info/METADATA": "Name: Some_Lib\nVersion: 1.2\nLicense-Expression: MIT\n",
    "opt/rhizome/lib/python3.13/site-packages/Some_Lib-1.2.dist-info/RECORD": "some/lib.py,,\nSome_Lib-1.2.dist-info/METADATA,,\n"
    "Some_Lib-1.2.dist-info/RECORD,,\n../../../bin/some,,\n",
    "opt/rhizome/lib/python3.13/site-packages/some/lib.py": "",
    "opt/rhizome/lib/python3.13/site-packages/some/__pycache__/lib.cpython-313.pyc": "x",
    "opt/rhizome/bin/some": "x",
    "usr/local/bin/supervise": "#!/bin/sh\n",
}
GO = """#!/bin/sh
test "$1 $2" = "version -m"
printf '%s: go1.26.8\\n\\tpath\\tx.example/w\\n\\tmod\\tx.example/w\\tv1.0.0\\th1:a=\\n\\tdep\\tx.example/lib\\tv0.2.0\\th1:b=\\n' "$3"
"""
LISTED = [
    "pkg:deb/debian/tini@0.19.0-3%2Bb8?arch=amd64&distro=debian-13",
    "pkg:golang/stdlib@1.26.8",
    "pkg:golang/x.example/lib@v0.2.0",
    "pkg:golang/x.example/w@v1.0.0",
    "pkg:pypi/some-lib@1.2",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    for name, text in FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    (made / "bin").symlink_to("usr/bin")
    (made / "usr/local/bin/w").write_bytes(b"\x7fELF" + GO_MAGIC)
    return made


@pytest.fixture
def go(tmp_path: Path) -> str:
    path = tmp_path / "go"
    path.write_text(GO)
    path.chmod(0o755)
    return str(path)


def test_it_lists_what_is_installed_and_nothing_else(root: Path, go: str) -> None:
    known = bill(root, go)
    assert [part["purl"] for part in known["components"]] == LISTED
    assert json.dumps(known) == json.dumps(bill(root, go)), "the same bytes each time"
    assert unaccounted(root, known) == []


@pytest.mark.parametrize("purl", [purl for purl in LISTED if "stdlib" not in purl and "x.example/lib" not in purl])
def test_files_of_what_is_not_listed_are_found(purl: str, root: Path, go: str) -> None:
    known = bill(root, go)
    known["components"] = [part for part in known["components"] if part["purl"] != purl]
    assert unaccounted(root, known)


@pytest.mark.parametrize(
    "stranger",
    [
        "usr/bin/stranger",
        "usr/local/bin/stranger",
        "usr/lib/stranger.so",
        "opt/rhizome/bin/stranger",
        "opt/rhizome/lib/python3.13/site-packages/stranger.py",
        "opt/rhizome/lib/python3.13/site-packages/some/__pycache__/stranger.cpython-313.pyc",
    ],
)
def test_a_file_of_nobody_is_found(stranger: str, root: Path, go: str) -> None:
    (root / stranger).parent.mkdir(exist_ok=True)
    (root / stranger).write_text("x")
    assert unaccounted(root, bill(root, go)) == [stranger]
