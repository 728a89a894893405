"""From a subject to a role and a name."""

import pytest

from agent.identity import Identity, Role
from lab.tokens import SUBJECT, claims
from seed_server.tokens.policy import SUBJECT as KIND
from seed_server.tokens.policy import TokenPolicy, parse


@pytest.mark.parametrize("text", [f"{SUBJECT}=shoot-client", "a=b=sidecar", "prometheus=sidecar/prometheus-0"])
def test_a_rule_is_written_as_it_is_read(text: str) -> None:
    assert KIND.show(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not SUBJECT=ROLE"),
        ("=shoot-client", "not SUBJECT=ROLE"),
        (f"{SUBJECT}=root", "the role is none of"),
        (f"{SUBJECT}=seed-server", "the role is none of"),
        (f"{SUBJECT}=sidecar/", "a DNS name has"),
        (f"{SUBJECT}=sidecar/../x", "a DNS label has"),
        ("x" * 513 + "=sidecar", "at most 512"),
    ],
)
def test_a_rule_that_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(text)


def test_who_is_named_after_what() -> None:
    rules = (parse(f"{SUBJECT}=shoot-client"), parse("prom=sidecar"), parse("fixed=sidecar/kube-apiserver-0"))
    policy = TokenPolicy("a", (), (), rules)
    of_pod = claims("x", node="node-7")
    assert policy.holder(of_pod) == Identity("a", Role.SHOOT_CLIENT, "node-7")
    assert policy.holder(of_pod | {"sub": "prom"}).name == "rhizome-shoot-client-x7k2p"
    assert policy.holder({"sub": "fixed"}) == Identity("a", Role.SIDECAR, "kube-apiserver-0")
    of_pod["kubernetes.io"].pop("node")
    assert policy.holder(of_pod).name == "rhizome-shoot-client-x7k2p", "before Kubernetes 1.30 tokens name no node"
