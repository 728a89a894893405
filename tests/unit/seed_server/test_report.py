"""What a seed server says of its clients and ranges, and that it says nothing old."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.identity import Identity, Role
from agent.model import IPNetwork, PresharedKey, PublicKey, networks
from seed_server import report
from seed_server.charter import Charter, charter
from seed_server.registry import Client, Registry
from seed_server.settings import Settings

NODES, PODS, SERVICES = networks(["10.250.0.0/16", "100.96.0.0/11", "100.64.0.0/13"])
SEEN = report.Seen({}, {}, (), {}, None, "", "", wall=0.0, now=0.0)


def client(name: str) -> Client:
    return Client(
        Identity("cp", Role.SHOOT_CLIENT, name),
        PublicKey(name.encode().ljust(32, b".")),
        (ip_address("192.168.128.9"),),
        own=(),
        shared=(),
        refused=(),
        preshared_key=PresharedKey(b"p" * 32),
        expires_at=1000.0,
        stream=1,
    )


@pytest.fixture
def bounds() -> Charter:
    return charter(
        Settings(
            control_plane="cp",
            tunnel_networks=networks(["192.168.128.0/17"]),
            tls_ca=Path("ca.crt"),
            tls_certificate=Path("tls.crt"),
            tls_key=Path("tls.key"),
            node_networks=(NODES,),
            pod_networks=(PODS,),
            service_networks=(SERVICES,),
        )
    )


def registry(*clients: Client) -> Registry:
    return Registry(clients={str(each.identity): each for each in clients})


def carried(**networks_by: str) -> dict[str, tuple[IPNetwork, ...]]:
    return {str(Identity("cp", Role.SHOOT_CLIENT, name)): networks(text.split()) for name, text in networks_by.items()}


def test_ranges_name_those_who_carry_a_part(bounds: Charter) -> None:
    clients = [client(f"n{number}") for number in range(1, 6)]
    carries = carried(**{f"n{number}": f"100.{63 + number}.0.0/16" for number in range(1, 6)}, n6="10.250.0.7/32")
    rows = report.Rows().of(bounds, registry(*clients), carries)
    said = {item.prefix: (item.kind, item.carrier) for item in report.ranges(bounds, rows)}
    assert said == {
        str(NODES): ("node", ""),
        str(PODS): ("pod", ""),
        str(SERVICES): ("service", "n1, n2, n3 and 2 more"),
    }


def test_neighbouring_parts_are_told_as_one_by_the_client_that_has_them(bounds: Charter) -> None:
    rows = report.Rows().of(bounds, registry(client("n1")), carried(n1="100.64.0.0/16 100.65.0.0/16 10.250.0.7/32"))
    (row,) = report.peers(rows, SEEN)
    assert row.prefixes == ("10.250.0.7/32", "100.64.0.0/15") and row.addresses == ("192.168.128.9",)
    assert row.path == "no stream" and row.name == "n1"


def test_what_is_told_once_is_told_anew_when_it_has_changed(bounds: Charter) -> None:
    known, first = report.Rows(), client("n1")
    carries = carried(n1="10.250.0.7/32")
    known.of(bounds, registry(first), carries)
    (row,) = report.peers(known.of(bounds, registry(first), carries), SEEN)
    assert row.prefixes == ("10.250.0.7/32",)
    carries |= carried(n1="100.64.0.0/16")
    (row,) = report.peers(known.of(bounds, registry(first), carries), SEEN)
    assert row.prefixes == ("100.64.0.0/16",)
    moved = replace(first, addresses=(ip_address("192.168.128.10"),))
    (row,) = report.peers(known.of(bounds, registry(moved), carries), SEEN)
    assert row.addresses == ("192.168.128.10",)
    assert known.of(bounds, registry(), carries) == []
