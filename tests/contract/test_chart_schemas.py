"""What the charts render, over a matrix of values, is what Kubernetes' own schemas allow, strictly, from the oldest release to the newest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from lab.helm import CHARTS, EXAMPLES, MATRIX, SEED, helm, objects, pod, text

VERSIONS = ["1.29", "1.31", "1.34", "1.37"]
#: Of other projects; Kubernetes has no schema of them.
FOREIGN = {"Certificate", "PodMonitor", "PrometheusRule"}


def check(rendered: str, version: str) -> int:
    found = [item for item in objects(rendered) if item["kind"] not in FOREIGN]
    for item in found:
        kubernetes_validate.validate(item, version, strict=True)
    return len(found)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("chart", EXAMPLES)
def test_all_that_can_be_switched_on(chart: str, version: str) -> None:
    assert check(text(chart, CHARTS / chart / "ci/full-values.yaml", kube=version), version) >= 4


@pytest.mark.parametrize(("chart", "values"), MATRIX)
def test_a_matrix_of_values(chart: str, values: dict[str, Any]) -> None:
    assert check(text(chart, EXAMPLES[chart], values=values), "1.34") >= 2


def test_the_schema_finds_what_is_wrong() -> None:
    """Else the tests above would pass for anything."""
    found = objects(text(SEED, EXAMPLES[SEED]))
    pod(found)["spec"]["containers"][0]["readOnlyRootFilesystem"] = True
    (broken,) = [item for item in found if item["kind"] == "Deployment"]
    with pytest.raises(Exception, match="readOnlyRootFilesystem"):
        kubernetes_validate.validate(broken, "1.34", strict=True)


@pytest.mark.parametrize("chart", EXAMPLES)
@pytest.mark.parametrize("values", ["example", "full"])
def test_lint(chart: str, values: str) -> None:
    path: Path = EXAMPLES[chart] if values == "example" else CHARTS / chart / "ci/full-values.yaml"
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHARTS / chart), "--values", str(path))


@pytest.mark.parametrize("chart", EXAMPLES)
def test_too_old_a_kubernetes_is_said_so(chart: str) -> None:
    with pytest.raises(Exception, match=r"incompatible with Kubernetes v1\.28"):
        text(chart, EXAMPLES[chart], kube="1.28.0")


@pytest.mark.parametrize("chart", EXAMPLES)
def test_a_package_has_all_it_needs(chart: str, tmp_path: Path) -> None:
    """.Files come from the archive, too."""
    helm("package", str(CHARTS / chart), "--destination", str(tmp_path))
    (archive,) = tmp_path.glob("*.tgz")
    full = CHARTS / chart / "ci/full-values.yaml"
    packaged = helm("template", "vpn", str(archive), "--values", str(full), "--kube-version", "1.34")
    assert "kind: PrometheusRule" in packaged and '"title": "Rhizome:' in packaged
