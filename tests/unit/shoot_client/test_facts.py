"""What a node could carry, from settings and from a file."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.messages import Offer
from agent.model import networks
from shoot_client import facts
from shoot_client.facts import offer, read_file


def test_addresses_become_host_prefixes() -> None:
    made = offer((ip_address("10.250.0.2"), ip_address("fd00::2")), networks(["100.96.1.0/24"]), ())
    assert made == Offer(networks(["10.250.0.2/32", "fd00::2/128"]), networks(["100.96.1.0/24"]))


def test_a_file_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "facts.toml"
    path.write_text(
        'node_addresses = ["10.250.0.2"]\npod_cidrs = ["100.96.1.0/24"]\nservice_cidrs = ["100.64.0.0/13"]\n'
    )
    assert read_file(path) == Offer(
        networks(["10.250.0.2/32"]), networks(["100.96.1.0/24"]), networks(["100.64.0.0/13"])
    )


def test_every_problem_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "facts.toml"
    path.write_text(
        'node_addresses = ["10.250.0.0/16"]\npod_cidrs = "x"\nservice_cidrs = ["nonsense", "10.0.0.1/8"]\ncolour = 1\n'
    )
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 5
    for word in ("colour", "not one address", "not a list", "nonsense", "10.0.0.1/8"):
        assert word in text


@pytest.mark.parametrize("content", [b"\xff\xfe", b"= 1"])
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "facts.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not TOML"):
        read_file(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_file(tmp_path / "absent")


def test_what_several_sources_say_is_joined_and_nothing_stands_twice() -> None:
    given = facts.offer((ip_address("10.250.0.2"),), networks(["100.96.1.0/24"]), (), networks(["10.250.0.0/16"]))
    more = Offer(networks(["10.250.0.2/32", "10.250.0.3/32"]), (), networks(["100.64.0.0/13"]))
    joined = facts.merge(given, more)
    assert joined.nodes == networks(["10.250.0.2/32", "10.250.0.0/16", "10.250.0.3/32"])
    assert (joined.pods, joined.services) == (networks(["100.96.1.0/24"]), networks(["100.64.0.0/13"]))
    assert facts.own_addresses(joined) == (ip_address("10.250.0.2"), ip_address("10.250.0.3"))
