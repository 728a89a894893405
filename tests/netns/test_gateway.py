"""A node with a client is a good gateway: services as kube-proxy makes them, whatever rp_filter and FORWARD say."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from agent.status import Verdict
from lab import addresses
from lab.addresses import Family, Pair
from lab.daemons import Daemon
from lab.lab import Lab
from lab.processes import wait_until

pytestmark = pytest.mark.netns

FAMILIES: tuple[Family, Family] = (4, 6)
LOCAL, REMOTE = Pair("10.50.0.20", "fd00:50::20"), Pair("10.50.0.21", "fd00:50::21")


def kube_proxy() -> str:
    """A table as kube-proxy's nftables mode makes it: one service on a pod of this node, one on a pod of another node."""
    rules = "".join(
        f"    {word} daddr {daddr} tcp dport 80 dnat {word} to {pod}\n"
        for vip, index in ((LOCAL, 1), (REMOTE, 2))
        for word, daddr, pod in (
            ("ip", vip.v4, f"{addresses.pod(index).v4}:{addresses.HTTP_PORT}"),
            ("ip6", vip.v6, f"[{addresses.pod(index).v6}]:{addresses.HTTP_PORT}"),
        )
    )
    return f"table inet kube-proxy {{\n  chain nat-prerouting {{\n    type nat hook prerouting priority dstnat;\n{rules}  }}\n}}\n"


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Lab, Daemon]]:
    """Two nodes that route to each other's pods, as a CNI makes them; only the first has a client, which is told too."""
    with Lab("none", nodes=2) as lab:
        for here, there in ((1, 2), (2, 1)):
            node = lab.nodes[here - 1]
            node.ip(f"route add {addresses.pod_network(there).v4} via {addresses.node(there).v4}")
            node.ip(f"route add {addresses.pod_network(there).v6} via {addresses.node(there).v6}", family=6)
            node.sysctl(net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1)
        # The security group lets nodes talk to each other.
        nodes4, nodes6 = addresses.SHOOT_NODES
        for chain in ("refuse_input", "refuse_forward"):
            lab.nodes[1].run(["nft", "insert", "rule", "inet", "lab", chain, "ip", "saddr", nodes4, "accept"])
            lab.nodes[1].run(["nft", "insert", "rule", "inet", "lab", chain, "ip6", "saddr", nodes6, "accept"])
        lab.node.nft(kube_proxy())
        server = lab.seed_server(shared_nodes=True)
        client = lab.shoot_client(
            node_cidrs=addresses.SHOOT_NODES,
            pod_cidrs=[*addresses.pod_network(1), *addresses.SHOOT_PODS],
            masquerade_exempt=[*addresses.pod_network(1)],
        )
        server.start()
        client.start()
        client.wait_ready()
        server.wait_ready()
        yield lab, client


@pytest.fixture
def lab(running: tuple[Lab, Daemon]) -> Lab:
    return running[0]


@pytest.fixture
def client(running: tuple[Lab, Daemon]) -> Daemon:
    return running[1]


def page(lab: Lab, pair: Pair, family: Family, port: int = addresses.HTTP_PORT) -> dict[str, str]:
    url = addresses.Target("it", pair, port, answers_ping=False).url(family)
    answer: dict[str, str] = json.loads(lab.seed.run(["curl", "-gsS", "-m5", url]).stdout)
    return answer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_services_pods_and_nodes_answer_whatever_rp_filter_says(lab: Lab, rp_filter: int, family: Family) -> None:
    interfaces = [link["ifname"] for link in json.loads(lab.node.run(["ip", "-j", "link"]).stdout)]
    for interface in ("all", "default", *interfaces):
        lab.node.sysctl(**{f"net__ipv4__conf__{interface}__rp_filter": rp_filter})
    assert page(lab, LOCAL, family, 80)["machine"] == "pod1"
    remote = page(lab, REMOTE, family, 80)
    assert remote["machine"] == "pod2"
    assert remote["client"] == addresses.node(1)[family], "masqueraded: the answer comes back the same way"
    assert page(lab, addresses.pod(2), family)["client"] == addresses.node(1)[family]
    assert page(lab, addresses.node(2), family)["machine"] == "node2", "a node without a client of its own"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_range_can_be_exempt_from_masquerade(lab: Lab, family: Family) -> None:
    own = lab.tunnel_addresses(lab.seed)
    assert page(lab, addresses.pod(1), family)["client"] in own, "the pod sees who asks"
    assert page(lab, LOCAL, family, 80)["client"] not in own, "through a service, the service's range counts"


@pytest.mark.parametrize("family", FAMILIES)
def test_connections_through_a_service_have_segments_that_fit(lab: Lab, family: Family) -> None:
    """A megabyte through the gateway to the other node's pod: nothing is too large for the tunnel, either way."""
    report = lab.seed.run_tool("transfer", addresses.pod(2)[family], addresses.BULK_PORT, 1_000_000, "down", 1)
    assert report["intact"] is True
    report = lab.seed.run_tool("transfer", addresses.pod(2)[family], addresses.BULK_PORT, 1_000_000, "up", 1)
    assert report["intact"] is True


@pytest.mark.parametrize("chain", ["input", "forward"])
def test_another_firewall_that_drops_is_told_of_in_the_status(lab: Lab, client: Daemon, chain: str) -> None:
    """A hardened node: the policy of its own chain is DROP. Nothing can be accepted against it, so it has to be said."""
    target = addresses.node(1) if chain == "input" else addresses.pod(2)
    uplink = 'iifname "eth0" accept; iifname "lo" accept; iifname "rz-shoot" udp dport 52485 accept'
    lab.node.nft(
        f"table inet hardened {{ chain {chain} {{ type filter hook {chain} priority filter; policy drop; {uplink}; }}; }}"
    )
    try:
        url = addresses.Target("it", target, addresses.HTTP_PORT, answers_ping=False).url()
        for _ in range(3):
            assert lab.seed.run(["curl", "-sS", "-m2", url], check=False).returncode != 0
        wait_until(lambda: "another firewall of this host dropped" in client.status().sentence, "being told of it")
        assert client.status().verdict is Verdict.DEGRADED
    finally:
        lab.node.nft("delete table inet hardened")
    assert page(lab, target, 4)["machine"], "and it works again"
