"""docs/install.md: its blocks are files, and the files do what they say, with kubectl and Helm's cluster side stood in for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agent.enrolment import find, parse
from lab.helm import ROOT, SEED, SHOOT, objects, only, pod, text
from seed_server.tokens.own import Mint

PAGE = ROOT / "docs" / "install.md"
EXAMPLES = ROOT / "examples" / "charts"
SCRIPTS = ("seed.sh", "sidecar.sh", "shoot.sh", "enrol.sh", "uninstall-shoot.sh")

#: `get nodes` answers; secrets have their files; everything is written down. `helm install` and `upgrade` render.
KUBECTL = """#!/bin/sh
echo "kubectl $*" >>"$LOG"
case "$*" in *"get nodes"*) printf 'node/node-1\\nnode/node-2.example\\n' ;; esac
for word in "$@"; do case $word in --from-file=*) test -s "${word##*=}" ;; esac || exit 1; done
"""
HELM = """#!/bin/sh
echo "helm $*" >>"$LOG"
case $1 in
  install) shift; exec "$REAL_HELM" template "$@" >"$LOG.$1.yaml" ;;
  upgrade) test -d "$3" ;;
  uninstall) ;;
  *) exit 1 ;;
esac
"""


def shown(name: str) -> str:
    language = {".yaml": "yaml", ".toml": "toml"}.get(Path(name).suffix, "sh")
    return f"<!-- {name} -->\n```{language}\n{(ROOT / name).read_text()}```\n"


def test_the_blocks_are_the_files() -> None:
    """RHIZOME_WRITE_GOLDEN=1 puts the files in again."""
    page = PAGE.read_text(encoding="utf-8")
    names = re.findall(r"<!-- (examples/\S+) -->", page)
    assert {f"examples/charts/{name}" for name in SCRIPTS} < set(names)
    got = re.sub(r"<!-- (examples/\S+) -->\n(```.*?```\n)?", lambda match: shown(match[1]), page, flags=re.DOTALL)
    if os.environ.get("RHIZOME_WRITE_GOLDEN"):
        PAGE.write_text(got, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == got


def test_the_sidecars_patch_is_where_the_script_looks() -> None:
    values = (EXAMPLES / "seed-server.yaml", EXAMPLES / "sidecar.yaml")
    data = only(objects(text(SEED, *values)), "ConfigMap", "-sidecar-prometheus")["data"]
    assert "configmap vpn-rhizome-seed-server-sidecar-prometheus" in (EXAMPLES / "sidecar.sh").read_text()
    assert (
        "secretName: prometheus-vpn" in data["pod-patch.yaml"] and 'server_name = "vpn.example"' in data["config.toml"]
    )


def test_the_tokens_are_where_the_seed_server_looks(installed: Path) -> None:
    place = installed.parent
    found = objects(text(SEED, *(EXAMPLES / name for name in ("seed-server.yaml", "enrolment.yaml"))))
    settings = tomllib.loads(only(found, "ConfigMap", SEED)["data"]["config.toml"])
    mounts = {m["name"]: m["mountPath"] for m in pod(found)["spec"]["containers"][0]["volumeMounts"]}
    calls = installed.read_text()
    for volume, setting, key in (
        ("enrolment", "enrolment_file", "tokens.txt"),
        ("signing", "enrolment_secret", "secret"),
    ):
        (name,) = [v["secret"]["secretName"] for v in pod(found)["spec"]["volumes"] if v["name"] == volume]
        assert f"create secret generic {name} --from-file={key}=" in calls
        assert settings[setting] == f"{mounts[volume]}/{key}"
    (line,) = parse((place / "tokens.txt").read_text())
    assert find([line], (place / "edge-1.token").read_text().strip()) == line
    assert (place / "edge-1.token").stat().st_mode & 0o777 == 0o600
    Mint(place / "signing-secret", "shoot--garden--a", 60.0, lambda: 0.0)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts one after the other, as somebody would type them; the log of what they called."""
    place = tmp_path_factory.mktemp("install")
    for folder in ("charts", "examples"):
        shutil.copytree(ROOT / folder, place / folder)
    tools = place / "bin"
    tools.mkdir()
    agent = f'#!/bin/sh\ncd {place} && PYTHONPATH={ROOT} exec {sys.executable} -m agent "$@"\n'
    for name, script in (("kubectl", KUBECTL), ("helm", HELM), ("rhizome-agent", agent)):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    log = place / "log"
    env = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "LOG": str(log),
        "REAL_HELM": str(Path(sys.executable).parent / "helm"),
        "HOME": str(place),
    }
    for step in SCRIPTS:
        done = subprocess.run(["sh", f"examples/charts/{step}"], cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return log


def test_the_scripts_do_what_they_say(installed: Path) -> None:
    lines = installed.read_text().splitlines()
    secrets = [line for line in lines if " create secret " in line]
    assert len(secrets) == 5 and not any("ca.key" in line for line in secrets)
    (container,) = pod(objects(Path(f"{installed}.vpn.yaml").read_text()))["spec"]["containers"]
    assert container["args"][0] == SHOOT
    files = {entry["name"]: entry.get("value", "") for entry in container["env"]}
    for node in ("node-1", "node-2.example"):
        for name in ("RHIZOME_TLS_CA", "RHIZOME_TLS_CERTIFICATE", "RHIZOME_TLS_KEY"):
            key = Path(files[name].replace("$(NODE_NAME)", node)).name
            assert f"--from-file={key}=" in secrets[2]
    upgrade, uninstall = (
        next(n for n, line in enumerate(lines) if word in line)
        for word in (f"helm upgrade vpn charts/{SHOOT}", "helm uninstall")
    )
    assert upgrade < uninstall and "cleanup=true" in lines[upgrade]
