"""Which sidecar may reach what: rules as people write them, and what follows."""

import pytest

from agent.model import networks
from seed_server.access import parse, reach

DECLARED = (
    ("nodes", networks(["10.250.0.0/16", "fd00:1::/64"])),
    ("pods", networks(["100.96.0.0/11"])),
    ("services", networks(["100.64.0.0/13"])),
)
ALL = networks(["10.250.0.0/16", "fd00:1::/64", "100.96.0.0/11", "100.64.0.0/13"])


def reached(name: str, *rules: str) -> tuple[str, ...] | None:
    found = reach(map(parse, rules), name, DECLARED)
    return None if found is None else tuple(map(str, found))


def test_without_rules_everybody_reaches_everything() -> None:
    assert reach((), "anybody", DECLARED) == ALL


def test_with_rules_only_who_is_named_is_let_in() -> None:
    assert reached("kube-apiserver-0", "kube-apiserver-*=all", "prometheus-*=nodes") == tuple(map(str, ALL))
    assert reached("prometheus-0", "kube-apiserver-*=all", "prometheus-*=nodes") == ("10.250.0.0/16", "fd00:1::/64")
    assert reached("grafana", "kube-apiserver-*=all", "prometheus-*=nodes") is None


def test_rules_for_one_name_add_up_and_a_network_is_part_of_a_range() -> None:
    assert reached("p", "p=services", "*=100.96.3.0/24") == ("100.64.0.0/13", "100.96.3.0/24")


def test_a_network_that_is_declared_no_more_is_reached_no_more() -> None:
    assert reached("p", "p=192.0.2.0/24") == ()


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        ("a*", "a", True),
        ("*", "anything.at-all", True),
        ("a.b", "axb", False),
        ("a*c", "abbc", True),
        ("a*c", "abbcd", False),
    ],
)
def test_a_star_is_any_text_and_nothing_else_is_special(pattern: str, name: str, matches: bool) -> None:
    assert parse(f"{pattern}=all").matches(name) is matches


@pytest.mark.parametrize(
    "text", ["a", "=all", "a=", "a=everything", "A=all", "a[bc]=all", "a=10.0.0.1/8", "a b=all", "a=all\n"]
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"name|range|="):
        parse(text)


def test_it_is_written_as_it_was_read() -> None:
    for text in ("prometheus-*=nodes", "a=10.0.0.0/8", "a=all"):
        assert str(parse(text)) == text
