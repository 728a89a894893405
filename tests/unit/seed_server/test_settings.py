"""Rules between the settings of a seed server."""

from __future__ import annotations

import pytest

from agent.errors import ConfigError
from agent.settings import resolve
from seed_server.settings import Settings

BASE = {
    "control_plane": "a",
    "tls_ca": "ca",
    "tls_certificate": "crt",
    "tls_key": "key",
    "node_networks": "10.250.0.0/16",
    "pod_networks": "100.96.0.0/11",
    "service_networks": "100.64.0.0/13",
}


def get(**flags: str) -> Settings:
    return resolve(Settings, BASE | flags, {}).settings


def test_the_defaults_are_sound() -> None:
    settings = get()
    assert settings.listen == (("::", 8443),)
    assert [str(n) for n in settings.tunnel_networks] == ["192.168.128.0/17", "fd8f:6d53:b97a:1::/96"]
    assert [str(n) for n in settings.shoot_networks()] == ["10.250.0.0/16", "100.96.0.0/11", "100.64.0.0/13"]
    assert settings.tls.key == "key"


def test_clients_without_a_certificate_are_asked_for_where_they_can_be_believed() -> None:
    assert not get().takes_tokens
    assert get(oidc_issuers="https://a.example", oidc_subjects="x=shoot-client").takes_tokens
    assert get(enrolment_secret="secret").takes_tokens, "who has enrolled stays when no new tokens are taken"


def test_one_kind_of_network_is_enough() -> None:
    assert get(node_networks="", pod_networks="").shoot_networks()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"listen": ""}, "listen: empty: nobody could connect; give at least one address"),
        (
            {"enrolment_file": "tokens"},
            "enrolment_file, enrolment_secret: nothing to sign the credentials with that machines get for their tokens: make a "
            "file with `wg genkey`",
        ),
        (
            {"enrolment_file": "tokens", "enrolment_secret": "secret", "enrolment_dir": ""},
            "enrolment_file, enrolment_dir: nowhere to remember which tokens were used: name a directory on a disk that stays",
        ),
        (
            {"tunnel_networks": ""},
            "tunnel_networks: empty: clients could get no address; leave it out to take the default",
        ),
        (
            {"tunnel_networks": "10.1.0.0/24,10.2.0.0/24"},
            "tunnel_networks: two networks of one address family: leave one",
        ),
        (
            {"node_networks": "", "pod_networks": "", "service_networks": ""},
            "node_networks, pod_networks, service_networks: all empty: nothing could be reached; give one",
        ),
        ({"pod_networks": "0.0.0.0/0"}, "pod_networks: 0.0.0.0/0 is everything: name the shoot's ranges"),
        ({"pod_networks": "::/0"}, "pod_networks: ::/0 is everything: name the shoot's ranges"),
        (
            {"node_networks": "169.254.169.254/32"},
            "node_networks: 169.254.169.254/32 overlaps 169.254.0.0/16, which is no shoot's: remove it",
        ),
        (
            {"service_networks": "127.0.0.0/8"},
            "service_networks: 127.0.0.0/8 overlaps 127.0.0.0/8, which is no shoot's: remove it",
        ),
        (
            {"pod_networks": "192.168.0.0/16"},
            "pod_networks, tunnel_networks: 192.168.0.0/16 overlaps 192.168.128.0/17: "
            "the ranges of shoot, seed and tunnel must be disjoint",
        ),
        (
            {"seed_networks": "10.250.7.0/24"},
            "node_networks, seed_networks: 10.250.0.0/16 overlaps 10.250.7.0/24: "
            "the ranges of shoot, seed and tunnel must be disjoint",
        ),
        (
            {"seed_networks": "192.168.0.0/16"},
            "tunnel_networks, seed_networks: 192.168.128.0/17 overlaps 192.168.0.0/16: choose another tunnel network",
        ),
        ({"grant_lifetime_s": "3601"}, 'grant_lifetime_s: flag --grant-lifetime-s="3601": not in 10..3600'),
        ({"mtu_bytes": "1279"}, 'mtu_bytes: flag --mtu-bytes="1279": not in 1280..9000'),
        ({"runtime_dir": "run"}, "runtime_dir: run must be an absolute path"),
    ],
)
def test_a_broken_rule(flags: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get(**flags)
    assert caught.value.problems == (problem,)
