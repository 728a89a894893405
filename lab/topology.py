"""Builds the machines of a lab and the cables between them, as drawn in lab.addresses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lab import addresses
from lab.addresses import Pair
from lab.namespaces import Machine

#: Packets that are part of a flow that the inside began, and neighbour discovery, without which IPv6 has no link.
_ANSWERS = """
    ct state established,related accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, nd-router-solicit } accept"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What can be chosen about the wires. `straight`: the internet lets connections to the seed server pass, because
    there is no proxy. `impaired`: the link internet - NAT router is left out; somebody else lays it before `finish`."""

    nodes: int
    seed_pods: int
    mtu_bytes: int
    straight: bool
    impaired: bool


def wire(machines: dict[str, Machine], plan: Plan) -> None:
    """Links and addresses of all machines. The machines exist and are empty."""
    net, nat = machines["net"], machines["nat"]
    for machine in machines.values():
        machine.ip("link set lo up")
    _wire_seed(machines, plan)
    if not plan.impaired:
        _cable(net, "wan0", nat, "wan0", plan.mtu_bytes)
    nat.ip("link add lan0 type bridge", "link set lan0 up")
    _addresses(nat, "lan0", 24, 64, addresses.NAT_INSIDE)
    for index in range(1, plan.nodes + 1):
        node, pod = machines[f"node{index}"], machines[f"pod{index}"]
        _cable(node, "eth0", nat, f"port{index}", plan.mtu_bytes)
        nat.ip(f"link set port{index} master lan0")
        _addresses(node, "eth0", 24, 64, addresses.node(index))
        _default(node, addresses.NAT_INSIDE)
        _cable(node, "pod0", pod, "eth0", plan.mtu_bytes)
        _addresses(node, "pod0", 24, 64, addresses.pod_gateway(index))
        _addresses(pod, "eth0", 24, 64, addresses.pod(index))
        _default(pod, addresses.pod_gateway(index))


def _wire_seed(machines: dict[str, Machine], plan: Plan) -> None:
    """The seed server's pod, alone on its cable to the internet, or on a bridge with other pods."""
    net = machines["net"]
    pods = {"seed": addresses.SEED} | {
        f"seedpod{index}": addresses.seed_pod(index) for index in range(1, plan.seed_pods + 1)
    }
    if plan.seed_pods:
        net.ip(f"link add seed0 mtu {plan.mtu_bytes} type bridge", "link set seed0 up")
    for name, pair in pods.items():
        if plan.seed_pods:
            _cable(machines[name], "eth0", net, f"{name}-0", plan.mtu_bytes)
            net.ip(f"link set {name}-0 master seed0")
        else:
            _cable(machines[name], "eth0", net, "seed0", plan.mtu_bytes)
        _addresses(machines[name], "eth0", 24, 64, pair)
        _default(machines[name], addresses.SEED_GATEWAY)
    _addresses(net, "seed0", 24, 64, addresses.SEED_GATEWAY)


def finish(machines: dict[str, Machine], plan: Plan) -> None:
    """The rest, once internet and NAT router are linked: addresses there, forwarding, firewalls."""
    net, nat = machines["net"], machines["nat"]
    _addresses(net, "wan0", 24, 64, addresses.NET, addresses.PROXY, addresses.DNS)
    _addresses(nat, "wan0", 24, 64, addresses.NAT_OUTSIDE)
    _default(nat, addresses.NET)
    # An attacker on the internet may route towards the shoot; what comes from the seed finds no such route.
    for family, ranges in _by_family(addresses.SHOOT_NODES, addresses.SHOOT_PODS, addresses.SHOOT_SERVICES):
        net.ip(
            "rule add iif lo lookup 100 pref 100",
            *(f"route add {prefix} via {_of(addresses.NAT_OUTSIDE, family)} table 100" for prefix in ranges),
            *(f"route add unreachable {prefix}" for prefix in ranges),
            family=family,
        )
    for router in (net, nat):
        router.sysctl(net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1)
    net.sysctl(net__ipv4__icmp_ratelimit=0, net__ipv6__icmp__ratelimit=0)  # "no route" is said each time, and at once
    net.nft(_internet_firewall(plan.straight))
    nat.nft(_nat_firewall())
    for index in range(1, plan.nodes + 1):
        machines[f"node{index}"].nft(node_firewall(index))


def move(machine: Machine, interface: str, old: Pair, new: Pair, gateway: Pair) -> None:
    """Give `interface` a new address and take the old one away, as a new DHCP lease does."""
    machine.ip(
        f"address add {new.v4}/24 dev {interface}",
        f"address add {new.v6}/64 dev {interface} nodad",
        f"address delete {old.v4}/24 dev {interface}",
        f"address delete {old.v6}/64 dev {interface}",
        f"route replace default via {gateway.v4}",
    )
    machine.ip(f"route replace default via {gateway.v6}", family=6)


def _cable(left: Machine, left_end: str, right: Machine, right_end: str, mtu_bytes: int) -> None:
    left.ip(
        f"link add {left_end} mtu {mtu_bytes} type veth peer name {right_end} mtu {mtu_bytes} netns {right.name}",
        f"link set {left_end} up",
    )
    right.ip(f"link set {right_end} up")


def _addresses(machine: Machine, interface: str, length4: int, length6: int, *pairs: Pair) -> None:
    machine.ip(
        *(f"address add {pair.v4}/{length4} dev {interface}" for pair in pairs),
        *(f"address add {pair.v6}/{length6} dev {interface} nodad" for pair in pairs),
    )
    # Secondary addresses take over when the first one is moved away.
    machine.sysctl(**{f"net__ipv4__conf__{interface}__promote_secondaries": 1})


def _default(machine: Machine, gateway: Pair) -> None:
    machine.ip(f"route add default via {gateway.v4}")
    machine.ip(f"route add default via {gateway.v6}", family=6)


def _of(pair: Pair, family: int) -> str:
    return pair.v6 if family == 6 else pair.v4


def _by_family(*ranges: tuple[str, str]) -> Iterable[tuple[int, list[str]]]:
    return (4, [pair[0] for pair in ranges]), (6, [pair[1] for pair in ranges])


def _internet_firewall(straight: bool) -> str:
    """Nobody on the internet reaches the seed's pods; without a proxy, the seed server's port alone is exposed."""
    exposed = f'iifname "wan0" oifname "seed0" tcp dport {addresses.SERVER_PORT} accept' if straight else ""
    return f"""
table inet lab {{
  counter refused {{ }}
  chain forward {{
    type filter hook forward priority filter; policy accept;{_ANSWERS}
    {exposed}
    iifname "seed0" oifname "seed0" accept
    oifname "seed0" counter name refused drop
  }}
}}
"""


def _nat_firewall() -> str:
    """Goes out: everything, masqueraded. Comes in: answers, nothing else, neither through nor to the router."""
    return f"""
table inet lab {{
  counter refused {{ }}
  chain forward {{
    type filter hook forward priority filter; policy accept;{_ANSWERS}
    iifname "wan0" counter name refused drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;{_ANSWERS}
    iifname "wan0" counter name refused drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "wan0" masquerade
  }}
}}
"""


def node_firewall(index: int) -> str:
    """What a cloud's security group and kube-proxy do for a node: nothing comes in by the uplink; the service leads to
    the pod. The security group comes before any table of the node's own."""
    chains = [
        f"""
  chain refuse_{hook} {{
    type filter hook {hook} priority filter - 10; policy accept;{_ANSWERS}
    iifname "eth0" counter name refused drop
  }}"""
        for hook in ("input", "forward")
    ]
    for hook, priority in (("prerouting", "dstnat"), ("output", "-100")):
        rules = "".join(
            f"""
    ip daddr {addresses.SERVICE.v4} {protocol} dport {port} dnat ip to {addresses.pod(index).v4}:{target}
    ip6 daddr {addresses.SERVICE.v6} {protocol} dport {port} dnat ip6 to [{addresses.pod(index).v6}]:{target}"""
            for port, target in addresses.SERVICE_PORTS
            for protocol in ("tcp", "udp")
        )
        chains.append(f"""
  chain service_{hook} {{
    type nat hook {hook} priority {priority}; policy accept;{rules}
  }}""")
    return "table inet lab {\n  counter refused { }" + "".join(chains) + "\n}\n"
