"""What a host must reach without the tunnel, found in a namespace that looks like a pod."""

from __future__ import annotations

import subprocess
from ipaddress import ip_network
from pathlib import Path

import pytest

from agent.guard import Protected, guard_routes
from agent.protected import find_protected
from lab.inside import Inside

POD = """
link set lo up
link add eth0 type veth peer name eth0-peer
link add wg0 type veth peer name wg0-peer
link set wg0 alias rhizome-1
link set wg0 alias "rhizome 1"
link set eth0 up
link set eth0-peer up
link set wg0 up
link set wg0-peer up
address add 100.96.3.7/24 dev eth0
address add fd01::7/64 dev eth0 nodad
address add 192.168.128.2/32 dev wg0
address add 10.9.9.9/32 dev lo
route add default via 100.96.3.1
route add 10.20.0.0/16 via 100.96.3.2
route add 10.30.0.0/16 via 100.96.3.3 table 77
route add default nexthop via fd01::1 nexthop via fd01::2
"""


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# made by kubelet\nsearch svc.cluster.local\nnameserver 100.64.0.10\nnameserver fe80::53%eth0\n"
        "nameserver 127.0.0.53\nnameserver 2001:db8::53 # with a remark\noptions ndots:5\nnameserver\nnameserver 100.96.3.1\n"
    )
    return path


def found(environ: dict[str, str], resolv_conf: Path) -> dict[str, str]:
    inside = Inside()
    try:
        with inside.entered():
            subprocess.run(["ip", "-batch", "-"], input=POD, check=True, text=True)
            return {str(item.network): item.source for item in find_protected(environ, resolv_conf)}
    finally:
        inside.close()


def test_everything_that_counts_is_found_and_nothing_of_the_tunnel(resolv_conf: Path) -> None:
    assert found({"KUBERNETES_SERVICE_HOST": "100.64.0.1"}, resolv_conf) == {
        "10.9.9.9/32": "own address on lo",
        "100.96.3.7/32": "own address on eth0",
        "fd01::7/128": "own address on eth0",
        "100.96.3.1/32": "gateway on eth0",
        "100.96.3.2/32": "gateway on eth0",
        "fd01::1/128": "gateway on eth0",
        "fd01::2/128": "gateway on eth0",
        "100.64.0.10/32": f"nameserver in {resolv_conf}",
        "2001:db8::53/128": f"nameserver in {resolv_conf}",
        "100.64.0.1/32": "API server of this cluster, KUBERNETES_SERVICE_HOST",
    }


@pytest.mark.parametrize("environ", [{}, {"KUBERNETES_SERVICE_HOST": ""}, {"KUBERNETES_SERVICE_HOST": "api.example"}])
def test_without_resolver_and_without_cluster(environ: dict[str, str], tmp_path: Path) -> None:
    sources = found(environ, tmp_path / "absent").values()
    assert {source.split(" on ")[0] for source in sources} == {"own address", "gateway"}


def test_a_namespace_with_nothing_in_it(tmp_path: Path) -> None:
    inside = Inside()
    try:
        with inside.entered():
            assert find_protected({}, tmp_path / "absent") == ()
    finally:
        inside.close()


def test_the_guard_uses_it(resolv_conf: Path) -> None:
    protected = [Protected(ip_network(network), source) for network, source in found({}, resolv_conf).items()]
    (refusal,) = guard_routes([ip_network("100.96.0.0/11")], protected).refused
    assert "100.96.3.7/32 (own address on eth0)" in str(refusal)
