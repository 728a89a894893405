"""Rules between the settings of a shoot client, and the chain of proxies made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.carrier.api import Proxy
from agent.errors import ConfigError
from agent.settings import resolve
from shoot_client.settings import Settings

BASE = {
    "control_plane": "a",
    "tls_ca": "ca",
    "tls_certificate": "crt",
    "tls_key": "key",
    "server": "192.0.2.1:8443",
}


def get(**flags: str) -> Settings:
    return resolve(Settings, BASE | flags, {}).settings


def test_the_server_proves_its_own_name_unless_told_otherwise() -> None:
    assert get().sni() == "192.0.2.1"
    assert get(server_name="vpn.example").sni() == "vpn.example"


def test_the_first_proxy_gets_the_credentials_and_the_last_the_headers() -> None:
    more = {"proxy_credentials_file": "/pw", "proxy_headers": "A: 1\nB: 2"}
    headers = (("A", "1"), ("B", "2"))
    assert get(proxies="p:1,q:2,r:3", **more).proxy_chain() == (
        Proxy("p", 1, (), "/pw"),
        Proxy("q", 2),
        Proxy("r", 3, headers),
    )
    assert get(proxies="p:1", **more).proxy_chain() == (Proxy("p", 1, headers, "/pw"),)
    assert get().proxy_chain() == ()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (
            {"proxy_headers": "A: 1", "proxy_from_environment": "false"},
            "proxy_headers, proxies: there is no proxy to send it to: give `proxies`",
        ),
        (
            {"proxy_credentials_file": "/pw", "proxy_from_environment": "false"},
            "proxy_credentials_file, proxies: there is no proxy to send it to: give `proxies`",
        ),
        ({"pod_cidrs": "0.0.0.0/0"}, "pod_cidrs: a default route is never carried: name the ranges"),
        ({"service_cidrs": "10.0.0.0/8,::/0"}, "service_cidrs: a default route is never carried: name the ranges"),
        ({"proxies": "http://u:hunter2@p:1"}, "proxies: flag --proxies: has credentials in it: put user:password into a file and name it in proxy_credentials_file"),
    ],
)  # fmt: skip
def test_a_broken_rule(flags: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get(**flags)
    assert caught.value.problems == (problem,)


def test_credentials_for_an_api_server_that_is_not_asked_are_a_mistake(tmp_path: Path) -> None:
    (path := tmp_path / "kubeconfig").write_text("")
    with pytest.raises(ConfigError, match="node_object"):
        get(kubeconfig=str(path))
    assert get(kubeconfig=str(path), node_object="true").kubeconfig == path
    with pytest.raises(ConfigError, match="default route"):
        get(node_cidrs="0.0.0.0/0")
