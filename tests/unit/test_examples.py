"""The examples work as they stand: files are read by the role they are for, command lines run."""

from __future__ import annotations

import shlex
import shutil
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

import agent.sidecar.settings
import seed_server.settings
import shoot_client.settings
from agent.__main__ import main
from agent.cli.flags import load
from agent.kinds import LISTEN
from agent.settings import BaseSettings
from shoot_client.facts import read_file

ROOT = Path(__file__).parents[2]
ROLES: dict[str, type[BaseSettings]] = {
    "seed-server": seed_server.settings.Settings,
    "shoot-client": shoot_client.settings.Settings,
    "sidecar": agent.sidecar.settings.Settings,
}
#: Files of `rhizome-ipam` are run by tests/unit/ipam/cli.
FILES = sorted(path.name for path in (ROOT / "examples").glob("*.toml") if path.name != "pools.toml")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples beside the certificates that the comments on top of them tell to make."""
    place = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "examples", place / "examples")
    pki = str(place / "pki")
    assert main(["pki", "init", "--dir", pki, "--control-plane", "shoot--garden--a"]) == 0
    assert main(["pki", "server", "--dir", pki, "--dns", "vpn.example"]) == 0
    assert main(["pki", "client", "--dir", pki, "--name", "node-1"]) == 0
    assert main(["pki", "sidecar", "--dir", pki, "--name", "kube-apiserver"]) == 0
    (place / "pki" / "proxy-credentials").write_text("user:password\n")
    (place / "credential").mkdir()
    (place / "credential" / "token").write_text("rzt1_" + "A" * 43)
    return place


def test_there_is_an_example_for_every_role() -> None:
    assert {role for role in ROLES for name in FILES if name.startswith(role)} == set(ROLES)


@pytest.mark.parametrize("name", FILES)
def test_a_file(name: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    path = Path("examples") / name
    role = next((role for word, role in ROLES.items() if name.startswith(word)), None)
    if role is None:
        assert read_file(path).all()
        return
    resolved = load(role, ["--config", str(path)], env={})
    assert f"file {path}" in resolved.sources.values()


def test_the_egress_selector_is_what_kube_apiserver_takes() -> None:
    """Its rules (k8s.io/apiserver, egressselector/config.go): known fields, one transport, TLS with a client certificate."""
    document = yaml.safe_load((ROOT / "examples" / "egress-selector.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("apiserver.k8s.io/v1beta1", "EgressSelectorConfiguration")
    (selection,) = document["egressSelections"]
    assert selection.keys() == {"name", "connection"}
    assert selection["name"] == "cluster"
    assert selection["connection"].keys() == {"proxyProtocol", "transport"}
    assert selection["connection"]["proxyProtocol"] == "HTTPConnect"
    (way,) = selection["connection"]["transport"].items()
    assert way[0] == "tcp"
    assert way[1]["tlsConfig"].keys() == {"caBundle", "clientCert", "clientKey"}
    url = urlsplit(way[1]["url"])
    example = tomllib.loads((ROOT / "examples" / "seed-server.toml").read_text())
    assert (url.scheme, url.port) == ("https", LISTEN.parse(example["egress_listen"][0]).port)


@pytest.mark.parametrize("name", FILES)
def test_the_commands_in_the_head_of_a_file(
    name: str, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(directory)
    for line in Path("examples", name).read_text().splitlines():
        if line.startswith("#   rhizome-"):
            program, *words = shlex.split(line.removeprefix("#"))
            if words[0] == "sidecar":
                load(ROLES["sidecar"], words[1:], env={})
            elif program == "rhizome-agent":
                assert main([*words, "--force"]) == 0
            else:
                load(ROLES[program.removeprefix("rhizome-")], words, env={})


@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES)
def test_the_examples_in_help(
    role: type[BaseSettings], directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --print-config added: everything but the daemon itself."""
    monkeypatch.chdir(directory)
    for example in role.EXAMPLES:
        program = role.PROGRAM.split()
        words = shlex.split(example)
        assert words[: len(program)] == program
        words = words[len(program) :]
        with pytest.raises(SystemExit, match="0"):
            load(role, [*words, "--print-config"], env={})
        assert "shoot--garden--a" in capsys.readouterr().out


def test_both_containers_of_a_sidecar_start(directory: Path) -> None:
    files = {
        "/tls/ca.crt": "ca.crt",
        "/tls/tls.crt": "sidecar-kube-apiserver.crt",
        "/tls/tls.key": "sidecar-kube-apiserver.key",
    }
    pod = yaml.safe_load((ROOT / "examples" / "sidecar-pod.yaml").read_text())["spec"]
    once = []
    for kind in ("containers", "initContainers"):
        (container,) = pod[kind]
        program, command, *words = container["args"]
        assert (program, command) == ("rhizome-agent", "sidecar")
        given = [
            f"{flag}={directory / 'pki' / files[value]}" if value in files else word
            for word in words
            for flag, _, value in [word.partition("=")]
        ]
        once.append(load(agent.sidecar.settings.Settings, given, env={}).settings.once)
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert once == [False, True]
