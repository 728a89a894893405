"""What is not a usable kubeconfig or account is told with its cause."""

from pathlib import Path

import pytest

from agent.errors import ConfigError, StoreError
from agent.kubeaccess import async_connection, connection
from ipam.stores.kubeapi import connected

GOOD = """
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected"),
        ("[]", "not the shape of a kubeconfig"),
        ("clusters: []", "contexts is missing"),
        (GOOD.replace("current-context: x", ""), "No current context"),
        (GOOD.replace("current-context: x", "current-context: y"), "'y' not found"),
        (GOOD.replace(", user: u}", "}"), "names no user"),
        (GOOD.replace("token: t", "token: [1]"), "Expected `str"),
        (GOOD.replace("token: t", "client-certificate: absent.crt, client-key: absent.key"), "No such file"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    for way in (connection, async_connection):
        with pytest.raises(ConfigError, match=words):
            way(path)


def test_a_pod_without_the_environment_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError):
        connection(None)


async def test_several_kubeconfigs_are_not_guessed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_text(GOOD)
    monkeypatch.setenv("KUBECONFIG", ":".join(map(str, paths)))
    with pytest.raises(StoreError, match="name the one to use"):
        async with connected("garden", "tunnels"):
            pass
    paths[0].unlink()
    async with connected("garden", "tunnels"):
        pass
