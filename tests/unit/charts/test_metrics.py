"""Alerts and dashboards ask only for what the daemons really export: pages of both roles' own reporters, fully busy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from agent.carrier.api import Stats
from agent.checks import CLIENT, SEED_SERVER
from agent.client.passage import Passage
from agent.client.reporter import Reporter as ClientReporter
from agent.generations import Names
from agent.identity import Role
from agent.metrics import exposition
from agent.model import PeerStatus, PublicKey
from agent.pki import issue, make_ca
from agent.status import EgressHealth, PoolHealth
from lab.helm import CHARTS, ROOT, SEED, SHOOT
from seed_server.reporter import Reporter as SeedReporter

KEY = PublicKey(b"k" * 32)
METRIC = re.compile(r"\b(?:rhizome|process)_[a-z0-9_]+")
BY = re.compile(r"\b(?:by|on) \(([^)]*)\)")
MATCHER = re.compile(r"[{,](\w+)(?:=~|!~|!=|=)")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki")
    make_ca(directory, "a")
    return issue(directory, Role.SHOOT_CLIENT, "n1").certificate


@pytest.fixture(scope="module")
def exported(certificate: Path) -> dict[str, dict[str, set[str]]]:
    """Chart -> sample name -> its labels, of a seed server with a client and of a shoot client with a tunnel."""
    return {SEED: _samples(seed_status(certificate)), SHOOT: _samples(shoot_status(certificate))}


def _samples(status: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposition(status).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


STATS = Stats(1, 2, 3, 4, 5, (("cap", 1),), rtt_s=0.01, queue_delay_s=0.001)


def seed_status(certificate: Path) -> Any:
    """One client that answers. What stands in for the server has just what its reporter reads."""
    identity = SimpleNamespace(name="n1", role=Role.SHOOT_CLIENT)
    client = SimpleNamespace(
        identity=identity,
        public_key=KEY,
        addresses=("192.168.128.2",),
        stream=1,
        refused=(),
        expires_at=60.0,
        routes=(),
        path="",
        direct_key=None,
    )
    live = SimpleNamespace(
        last_pass=None, stats=STATS, last_turned_away="",
        streams={1: (identity, SimpleNamespace(peer="192.0.2.9:4000"))},
        refused={"outside": 1}, not_let_in={"revoked": 1}, turned_away={"tls": 1}, steps={"AddRoute": 1},
    )  # fmt: skip
    policy = SimpleNamespace(control_plane="a", nodes=(), pods=(), services=())
    roster = SimpleNamespace(
        carrying=SimpleNamespace(pulses={}, tally=SimpleNamespace(failovers={"silent": 1}, moves=1)),
    )  # fmt: skip
    server = SimpleNamespace(
        live=live, roster=roster,
        registry=SimpleNamespace(clients={"n1": client}), carries={}, charter=SimpleNamespace(policy=policy, ranges=(), mtu_bytes=1420),
        warden=SimpleNamespace(fence=SimpleNamespace(contested=1, fenced=lambda now: ())),
        stream=SimpleNamespace(
            names=Names("rz-seed", 51820), current=SimpleNamespace(ifname="rz-seed", incarnation=SimpleNamespace(epoch="e1")),
            statuses={"rz-seed": (PeerStatus(KEY, None, 1.0, 2, 3),)},
            canaries=lambda _: {"192.168.128.2": SimpleNamespace(age_s=lambda now: 0.1, rtt_s=0.01)},
        ), direct=None,
    )  # fmt: skip
    egress = EgressHealth(("[::]:9443",), dials=(("dial ok", 1),), latency=(("0.001", 1), ("inf", 0)))
    choice = SimpleNamespace(kind=SimpleNamespace(value="kernel"), reason="")
    known = SimpleNamespace(pools=lambda: (PoolHealth("192.168.128.0/17", 100, 1),))
    keys = SimpleNamespace(rotations={"done": 1}, age_s=lambda wall: 60.0, words=lambda now: "")
    reporter: Any = SeedReporter(server, keys, choice, certificate, known, SimpleNamespace(health=lambda: egress))  # type: ignore[arg-type]
    return reporter.status()


def shoot_status(certificate: Path) -> Any:
    grant = SimpleNamespace(servers=(), carries=(), refused=(), routes=(), epoch="e1")
    live = SimpleNamespace(
        last_pass=None, refused=(), steps={"AddRoute": 1},
    )  # fmt: skip
    leg = SimpleNamespace(
        up=SimpleNamespace(via="SNI"),
        dial_failed=None,
        status=PeerStatus(KEY, None, 1.0, 2, 3),
        stats=STATS,
        reconnects=1,
    )
    session = SimpleNamespace(
        stream=1, grant=grant, refusal=None, expires_in_s=lambda now: 1800.0, unrenewed_s=lambda now: None
    )
    client = SimpleNamespace(
        live=live, session=session, responder=SimpleNamespace(age_s=lambda now: 0.1), passage=Passage(), mtu_bytes=1420,
        plane=SimpleNamespace(ifname="rz-shoot", born=1.0), direct=None, keeper=None, leg=leg,
        crossing=SimpleNamespace(rotations={"done": 1}, words=""),
    )  # fmt: skip
    choice = SimpleNamespace(kind=SimpleNamespace(value="kernel"), reason="")
    reporter: Any = ClientReporter(client, Role.SHOOT_CLIENT, "a", choice, certificate, certificate)  # type: ignore[arg-type]
    return reporter.status()


def test_both_sides_say_how_long_their_certificate_was_issued_for(certificate: Path) -> None:
    for status in (seed_status(certificate), shoot_status(certificate)):
        assert status.certificate_lifetime_s > status.certificate_expires_in_s > 0


def queries(chart: str) -> dict[str, str]:
    """Where it stands -> PromQL, of the chart's alerts and dashboard."""
    rules = yaml.safe_load((CHARTS / chart / "files/alerts.yaml").read_text())
    found = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    board = json.loads((CHARTS / chart / "files/dashboard.json").read_text())
    for panel in board["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return found


@pytest.mark.parametrize("chart", [SEED, SHOOT])
def test_every_query_asks_for_what_is_exported(chart: str, exported: dict[str, dict[str, set[str]]]) -> None:
    asked = queries(chart)
    assert len(asked) > 20
    for where, query in asked.items():
        names = set(METRIC.findall(query))
        assert names, where
        assert names <= exported[chart].keys(), where
        known = {"namespace", "pod", "instance"}.union(*(exported[chart][name] for name in names))
        used = {label for group in BY.findall(query) for label in group.replace(" ", "").split(",")}
        used |= set(MATCHER.findall(query))
        assert used <= known, where


@pytest.mark.parametrize("chart", [SEED, SHOOT])
def test_legends_name_labels_that_are_there(chart: str, exported: dict[str, dict[str, set[str]]]) -> None:
    board = json.loads((CHARTS / chart / "files/dashboard.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            known = {"namespace", "pod"}.union(*(exported[chart][n] for n in METRIC.findall(target["expr"])))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= known, panel["title"]


def test_an_id_links_alert_check_runbook_and_test() -> None:
    alerts = [rule for chart in (SEED, SHOOT) for rule in _rules(chart)]
    ids = [rule["alert"] for rule in alerts]
    assert len(ids) == len(set(ids))
    pages = {path.stem for path in (ROOT / "docs/runbooks").glob("*.md")} - {"README"}
    assert pages == set(ids)
    assert sorted(check.id for check in (*SEED_SERVER, *CLIENT)) == sorted(ids)
    index = (ROOT / "docs/runbooks/README.md").read_text()
    for name in ids:
        page = (ROOT / "docs/runbooks" / f"{name}.md").read_text()
        assert page.startswith(f"# {name}\n") and "**Means.**" in page and "**Do.**" in page
        assert f"({name}.md)" in index
    cases = [yaml.safe_load(path.read_text())["tests"] for path in (ROOT / "tests/alerts").glob("*.yaml")]
    tested = {case["alert"] for tests in cases for case in tests if "fires" in case}
    assert tested == set(ids)


def _rules(chart: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((CHARTS / chart / "files/alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]
