"""Longest prefix first, one well client is enough, and without a daemon nothing is known to be down."""

from ipaddress import ip_address

from agent.model import networks
from seed_server.egress.reach import Fault, Reach


def reach() -> Reach:
    reach = Reach()
    reach.put("a", networks(["10.0.0.0/8", "fd00::/64"]), None)
    reach.put("b", networks(["10.1.0.0/16"]), Fault("b has not answered", 100.0))
    reach.know(None)
    return reach


def test_the_longest_prefix_decides() -> None:
    table = reach()
    assert table.fault(ip_address("10.2.0.1"), 142.0) == ""
    assert table.fault(ip_address("10.1.0.1"), 142.0) == "b has not answered for 42s"
    assert table.fault(ip_address("fd00::1"), 142.0) == ""
    assert table.fault(ip_address("11.0.0.1"), 142.0) == "no client carries 11.0.0.1"


def test_one_that_is_well_is_enough() -> None:
    table = reach()
    table.put("c", networks(["10.1.0.0/16"]), None)
    assert table.fault(ip_address("10.1.0.1"), 142.0) == ""
    table.remove("c")
    assert table.fault(ip_address("10.1.0.1"), 142.0) != ""
    table.remove("b")
    assert table.fault(ip_address("10.1.0.1"), 142.0) == ""


def test_nobody_at_all() -> None:
    table = Reach()
    table.know(Fault("no client", 100.0))
    assert table.fault(ip_address("10.1.0.1"), 142.0) == "no client for 42s"


def test_who_knows_nothing_refuses_nothing() -> None:
    table = Reach()
    assert table.fault(ip_address("10.1.0.1"), 0.0) == ""
    table = reach()
    table.forget()
    assert table.fault(ip_address("10.1.0.1"), 0.0) == ""
    table.know(None)
    assert table.fault(ip_address("10.2.0.1"), 0.0) == "no client carries 10.2.0.1"
