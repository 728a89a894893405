import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.carrier.api import Proxy
from agent.carrier.proxyenv import bypasses, proxy_from_environment
from agent.errors import ConfigError

SERVER = ("vpn.seed.example", 8443)


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://proxy.example:3128", Proxy("proxy.example", 3128)),
        ("proxy.example:3128", Proxy("proxy.example", 3128)),
        ("http://proxy.example", Proxy("proxy.example", 80)),
        ("http://proxy.example/", Proxy("proxy.example", 80)),
        ("http://[2001:db8::1]:3128", Proxy("2001:db8::1", 3128)),
        ("http://me:p%40ss@proxy.example:3128", Proxy("proxy.example", 3128, credentials="me:p@ss")),
        ("http://me@proxy.example", Proxy("proxy.example", 80, credentials="me:")),
    ],
)
def test_the_proxy_of_the_environment(url: str, proxy: Proxy) -> None:
    assert proxy_from_environment({"HTTPS_PROXY": url}, *SERVER) == proxy


def test_lower_case_wins() -> None:
    environ = {"HTTPS_PROXY": "http://upper:1", "https_proxy": "http://lower:1"}
    assert proxy_from_environment(environ, *SERVER) == Proxy("lower", 1)


@pytest.mark.parametrize("environ", [{}, {"HTTPS_PROXY": ""}, {"HTTP_PROXY": "http://plain:1"}, {"https_proxy": "  "}])
def test_without_https_proxy_there_is_none(environ: dict[str, str]) -> None:
    assert proxy_from_environment(environ, *SERVER) is None


@pytest.mark.parametrize(
    "url", ["https://proxy:1", "socks5://proxy:1", "http://me:hush@", "http://me:hush@proxy:99999", "http://[me:hush"]
)
def test_a_proxy_that_cannot_be_spoken_to_is_an_error_without_secrets(url: str) -> None:
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as caught:
        proxy_from_environment({"HTTPS_PROXY": url}, *SERVER)
    assert "hush" not in str(caught.value)


def test_credentials_are_never_shown() -> None:
    proxy = proxy_from_environment({"HTTPS_PROXY": "http://me:hush@proxy:1"}, *SERVER)
    assert "hush" not in repr(proxy)


@pytest.mark.parametrize(
    "no_proxy",
    [
        "*",
        "vpn.seed.example",
        "VPN.Seed.Example",
        "seed.example",
        ".seed.example",
        "*.seed.example",
        "other, vpn.seed.example:8443",
        "example",
    ],
)
def test_a_name_is_reached_without_a_proxy(no_proxy: str) -> None:
    assert bypasses(no_proxy, *SERVER)
    assert proxy_from_environment({"HTTPS_PROXY": "http://p:1", "NO_PROXY": no_proxy}, *SERVER) is None


@pytest.mark.parametrize(
    "no_proxy", ["", ",", ".", "*.", "n.seed.example", "vpn.seed.example:443", "eed.example", "10.0.0.0/8", "vpn"]
)
def test_other_names_are_not(no_proxy: str) -> None:
    assert not bypasses(no_proxy, *SERVER)


@pytest.mark.parametrize(
    ("no_proxy", "host", "answer"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:8443", "10.1.2.3", True),
        ("10.1.2.3:1", "10.1.2.3", False),
        ("2001:db8::/32", "2001:db8::5", True),
        ("2001:db8::5", "2001:db8::5", True),
        ("[2001:db8::5]:8443", "2001:db8::5", True),
        ("[2001:db8::5]:1", "2001:db8::5", False),
        ("2001:db8::5", "10.1.2.3", False),
        ("2.3", "10.1.2.3", False),
    ],
)
def test_addresses(no_proxy: str, host: str, answer: bool) -> None:
    assert bypasses(no_proxy, host, 8443) is answer


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_environment_gives_a_proxy_none_or_an_error(url: str, no_proxy: str) -> None:
    try:
        proxy = proxy_from_environment({"HTTPS_PROXY": url, "NO_PROXY": no_proxy}, *SERVER)
    except ConfigError:
        return
    assert proxy is None or proxy.host
