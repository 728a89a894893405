"""What the daemon tells its egress process, and what it makes of the settings and of the numbers."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest

from agent.carrier.api import TlsFiles
from agent.errors import ConfigError
from agent.model import networks
from agent.pulse import Pulse
from agent.settings import resolve
from seed_server import egress_link
from seed_server.charter import charter
from seed_server.egress.api import Carries, Known, Leaves, Ready, Stats
from seed_server.egress_link import EgressLink, config_of
from seed_server.reachable import Carrier
from seed_server.settings import Settings

BASE = {
    "control_plane": "shoot--a",
    "tls_ca": "/pki/ca.crt",
    "tls_certificate": "/pki/server.crt",
    "tls_key": "/pki/server.key",
    "node_networks": ["10.250.0.0/16"],
    "seed_networks": ["10.242.0.0/16"],
    "runtime_dir": "/run/x",
}


def settings(**more: Any) -> Settings:
    return resolve(Settings, BASE | more, {}).settings


def problems(**more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(**more)
    return str(caught.value)


def test_it_is_off_unless_it_is_configured() -> None:
    off = settings()
    assert config_of(off, charter(off)) is None


def test_settings_become_a_configuration() -> None:
    on = settings(
        egress_listen=["[::]:9443"],
        egress_client_ca="/pki/kube-ca.crt",
        egress_socket="/run/x/kube.sock",
        egress_socket_owner="65532:7",
        egress_socket_mode="0600",
        egress_direct=["10.242.7.0/24", "Metrics.Seed.Example"],
        egress_dns=["10.250.0.10"],
        tunnel_networks=["192.168.128.0/17"],
    )
    config = config_of(on, charter(on))
    assert config is not None
    assert config.addresses == (("::", 9443),)
    assert config.tls == TlsFiles("/pki/kube-ca.crt", "/pki/server.crt", "/pki/server.key")
    assert config.unix is not None
    assert (config.unix.uid, config.unix.gid, config.unix.mode) == (65532, 7, 0o600)
    assert config.direct == ("10.242.7.0/24", "metrics.seed.example")
    assert config.shoot == ("10.250.0.0/16",)
    assert dict(config.refused) == {
        "10.242.0.0/16": "the seed's own range",
        "192.168.128.0/17": "the tunnel's own network",
    }
    assert config.devices == (on.ifname, f"{on.ifname}-b")
    assert config.dns == ("10.250.0.10",)


def test_an_owner_has_to_exist() -> None:
    nobody = settings(egress_socket="/run/x/kube.sock", egress_socket_owner="no-such-user-here")
    with pytest.raises(ConfigError, match="no such user or group"):
        config_of(nobody, charter(nobody))
    root = settings(egress_socket="/run/x/kube.sock", egress_socket_owner="root:root")
    config = config_of(root, charter(root))
    assert config is not None
    assert config.unix is not None
    assert (config.unix.uid, config.unix.gid) == (0, 0)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"egress_listen": ["[::]:9443"]}, "name kube-apiserver's"),
        ({"egress_tls_key": "/pki/x.key"}, "give both or none"),
        ({"egress_socket": "x.sock"}, "absolute path"),
        ({"egress_dns": ["8.8.8.8"]}, "in none of the shoot's ranges"),
        ({"egress_direct": ["0.0.0.0/0"]}, "is everything"),
        ({"egress_direct": ["169.254.169.254/32"]}, "which is never dialled"),
        ({"egress_direct": ["10.250.7.0/24"]}, "which is the shoot's"),
        ({"egress_direct": ["10.250.7.1/24"]}, "host bits"),
        ({"egress_direct": ["a_b"]}, "DNS label"),
        ({"egress_socket_mode": "888"}, "octal"),
        ({"egress_socket_owner": "a b"}, "user:group"),
    ],
)
def test_settings_that_make_no_sense(more: dict[str, Any], words: str) -> None:
    assert words in problems(**more)


@dataclass
class Client:
    """An EgressClient that writes down what it is told."""

    told: list[object] = field(default_factory=list)
    hears: list[object] = field(default_factory=list)

    def send(self, command: object) -> None:
        self.told.append(command)

    async def events(self) -> AsyncIterator[object]:
        for event in self.hears:
            yield event


class Server:
    registry = None
    carries = MappingProxyType[str, Any]({})

    class roster:
        class carrying:
            pulses = MappingProxyType[str, Pulse]({})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> dict[str, Carrier]:
    """What `carriers` finds."""
    found: dict[str, Carrier] = {}
    monkeypatch.setattr(egress_link, "carriers", lambda *_: dict(found))
    return found


def make(client: Client) -> EgressLink:
    on = settings(egress_socket="/run/x/kube.sock", egress_listen=["[::]:9443"], egress_client_ca="/pki/ca.crt")
    config = config_of(on, charter(on))
    assert config is not None
    return EgressLink(client, Server(), config)  # type: ignore[arg-type]


def test_only_what_changes_is_told(world: dict[str, Carrier]) -> None:
    client = Client()
    link = make(client)
    prefixes = networks(["10.250.0.1/32"])
    now = link._nobody_since
    link.tell(now + 42.0)
    assert client.told == [Known("no client", 42.0)]
    link.tell(now + 43.0)
    assert len(client.told) == 1

    world["a"] = Carrier(prefixes)
    link.tell(now + 44.0)
    assert client.told[1:] == [Carries("a", ("10.250.0.1/32",)), Known()]
    world["a"] = Carrier(prefixes, "a has not answered", now + 40.0)
    link.tell(now + 45.0)
    assert client.told[3:] == [Carries("a", ("10.250.0.1/32",), "a has not answered", 5.0), Known()]
    link.tell(now + 46.0)
    assert len(client.told) == 5
    del world["a"]
    link.tell(now + 50.0)
    assert client.told[5:] == [Leaves("a"), Known("no client", 4.0)]


async def test_a_new_process_is_told_everything_again(world: dict[str, Carrier]) -> None:
    client = Client(hears=[Ready((("::", 9443),), 1)])
    link = make(client)
    world["a"] = Carrier(networks(["10.250.0.1/32"]))
    link.tell(0.0)
    before = list(client.told)
    await link._listen()
    assert client.told == before * 2


async def test_numbers_become_health(world: dict[str, Carrier]) -> None:
    dials = (("dial", "ok", 2), ("policy", "outside", 1))
    stats = Stats(1, 2, dials, ((0.001, 2), (-1.0, 0)), 0.0015, 10, 20, "10.0.0.1:80: why")
    link = make(Client(hears=[Ready((("::", 9443),), 1), stats]))
    assert link.health().listening == ("[::]:9443", "/run/x/kube.sock")
    await link._listen()
    health = link.health()
    assert (health.open, health.heads, health.up_bytes, health.down_bytes) == (1, 2, 10, 20)
    assert health.dials == (("dial ok", 2), ("policy outside", 1))
    assert health.latency == (("0.001", 2), ("inf", 0))
    assert health.last_failure == "10.0.0.1:80: why"
