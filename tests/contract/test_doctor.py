"""The doctor and the alerts mean the same: promtool is given the metrics pages of what the doctor looks at, just beyond each limit and within."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from agent.metrics import exposition
from agent.status import RoleStatus
from tests.contract.test_alerts import POD, promtool
from tests.doctor_cases import DAY_S, ROLES, Case, cases, rules

MINUTES = 90
#: Seconds from value to value, and a little less: events that are spread evenly are fractions, whose sum may be above a limit that is met.
EVENLY = 60 * (1 - 1e-6)
CERTIFICATE = "rhizome_certificate_expires_in_seconds"


def page(status: RoleStatus) -> dict[str, tuple[str, float]]:
    """Series as text -> the sample's name and value."""
    found = {}
    for family in text_string_to_metric_families(exposition(status).decode()):
        for sample in family.samples:
            if sample.name.startswith("rhizome_"):
                labels = ",".join(f'{name}="{value}"' for name, value in {**POD, **sample.labels}.items())
                found[f"{sample.name}{{{labels}}}"] = sample.name, sample.value
    return found


def series(case: Case, minutes: int) -> list[dict[str, str]]:
    """A value per minute: counters grow as they did between the looks, over and over; certificates come to their end."""
    looks = case.looks
    before, now = page(looks.before), page(looks.now)
    rows = []
    for text, (name, value) in now.items():
        steps = (value - before.get(text, (name, 0.0))[1]) * EVENLY / looks.seconds if name.endswith("_total") else 0.0
        values = f"{value}+{steps}x{minutes}" if steps else f"{value}x{minutes}"
        if name == CERTIFICATE and "Expiring" in case.id:
            values = " ".join(str(left) for left in certificate(looks.now, minutes))
        rows.append({"series": text, "values": values})
    labels = ",".join(f'{name}="{value}"' for name, value in POD.items())
    for name, count in (("open", looks.process.open_fds), ("max", looks.process.max_fds)):
        rows.append({"series": f"process_{name}_fds{{{labels}}}", "values": f"{count}x{minutes}"})
    return rows


def certificate(status: RoleStatus, minutes: int) -> list[float]:
    """What is left of it, minute by minute to the end; before it was issued there was one that was renewed when a third was left."""
    left, lifetime = status.certificate_expires_in_s, status.certificate_lifetime_s
    assert left is not None and lifetime is not None
    found = []
    for ago in range(60 * minutes, -1, -60):
        is_ours = ago <= lifetime - left
        found.append(left + ago if is_ours else lifetime / 3 + ago - (lifetime - left))
    return found


@pytest.mark.parametrize("chart", ROLES)
def test_an_alert_fires_where_the_doctor_fails_and_nowhere_else(chart: str, tmp_path: Path) -> None:
    plain = rules(chart)
    for rule in plain:
        rule["annotations"] = {}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": chart, "rules": plain}]}))
    tests = []
    for case in cases(chart):
        minutes = MINUTES + (round(DAY_S / 60) if "Expiring" in case.id else 0)
        query = f'count(ALERTS{{alertname="{case.id}",alertstate="firing"}}) or vector(0)'
        fired = [{"labels": "{}", "value": int(case.fires)}]
        tests.append(
            {
                "name": str(case),
                "interval": "1m",
                "input_series": series(case, minutes),
                "promql_expr_test": [{"expr": query, "eval_time": f"{minutes}m", "exp_samples": fired}],
            }
        )
    assert len(tests) > 20
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", str(path))
