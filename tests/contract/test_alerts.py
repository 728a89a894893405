"""The alerts of the charts in Prometheus' own promtool: their syntax, when each fires, and when it does not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.helm import CHARTS, SEED, SHOOT, objects, only, text

ALERTS = Path(__file__).parents[1] / "alerts"
POD = {"namespace": "a", "pod": "p", "instance": "10.0.0.9:9841"}
ROLES = {SEED: "seed-server", SHOOT: "shoot-client"}


def promtool(*words: str) -> str:
    program = shutil.which("promtool")
    assert program, "promtool is missing: scripts/setup test"
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules(chart: str) -> dict[str, Any]:
    """What the chart gives to the operator, with everything on."""
    values = {"prometheusRule": {"enabled": True, "disabled": []}}
    found = objects(text(chart, CHARTS / chart / "ci/full-values.yaml", values=values))
    spec: dict[str, Any] = only(found, "PrometheusRule")["spec"]
    return spec


@pytest.mark.parametrize("chart", ROLES)
def test_promtool_takes_the_rules(chart: str, tmp_path: Path) -> None:
    rendered = rules(chart)
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(rendered))
    assert "SUCCESS" in promtool("check", "rules", "--lint-fatal", str(path))
    plain = yaml.safe_load((CHARTS / chart / "files/alerts.yaml").read_text())
    for ours, theirs in zip(plain["groups"][0]["rules"], rendered["groups"][0]["rules"], strict=True):
        assert {key: ours[key] for key in ours if key != "annotations"} == {
            k: theirs[k] for k in theirs if k != "annotations"
        }
        assert theirs["annotations"] == ours["annotations"] | {"runbook": f"docs/runbooks/{ours['alert']}.md"} | (
            {"runbook_url": f"https://docs.example/runbooks/{ours['alert']}.md"} if chart == SEED else {}
        )


@pytest.mark.parametrize("chart", ROLES)
def test_each_alert_fires_and_is_silent(chart: str, tmp_path: Path) -> None:
    plain = yaml.safe_load((CHARTS / chart / "files/alerts.yaml").read_text())
    for rule in plain["groups"][0]["rules"]:
        del rule["annotations"]  # promtool compares them as texts; that they are templates is checked above
    severity = {rule["alert"]: rule["labels"]["severity"] for rule in plain["groups"][0]["rules"]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(plain))
    labels = ",".join(f'{name}="{value}"' for name, value in POD.items())
    cases = yaml.safe_load((ALERTS / f"{ROLES[chart]}.yaml").read_text())["tests"]
    tests = []
    for case in cases:
        series = {f'rhizome_build_info{{{labels},role="{ROLES[chart]}"}}': "1+0x4000"}
        series |= {name.replace("POD", labels): values for name, values in case["series"].items()}
        expected = {**POD, "severity": severity[case["alert"]], **case.get("labels", {})}
        checks = [{"eval_time": time, "alertname": case["alert"], "exp_alerts": []} for time in case["silent"]]
        if "fires" in case:
            fired = [{"exp_labels": expected}]
            checks.append({"eval_time": case["fires"], "alertname": case["alert"], "exp_alerts": fired})
        inputs = [{"series": name, "values": values} for name, values in series.items()]
        tests.append({"interval": "1m", "input_series": inputs, "alert_rule_test": checks})
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", str(path))
