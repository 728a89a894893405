"""A control plane of the lab is a real one, needs no tunnel on loopback, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from lab.kube import ControlPlane, Here
from lab.kube.binaries import binary
from lab.processes import LabError

pytestmark = pytest.mark.kube


def test_on_loopback_it_stores_objects_and_knows_its_users(tmp_path: Path) -> None:
    with ControlPlane(Here(tmp_path)) as plane:
        data = {"colour": "green"}
        plane.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "leaf"}, "data": data})
        read = json.loads(plane.kubectl("get", "configmap", "leaf", "--output=json"))
        assert read["data"] == data
        assert "admin" in plane.kubectl("auth", "whoami")
        trusting = ssl.create_default_context(cafile=str(plane.ca.certificate))
        with pytest.raises(urllib.error.HTTPError, match=r"401|403"):
            urllib.request.urlopen(f"{plane.url}/api/v1/namespaces", context=trusting)
        token = plane.kubectl("create", "token", "nobody", check=False)
        assert "not found" in token, "there is no such account, but tokens can be asked for"
        pids = [process.pid for process in plane.processes]
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_two_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with ControlPlane(Here(tmp_path / "a")) as one, ControlPlane(Here(tmp_path / "b")) as other:
        one.kubectl("create", "namespace", "only-here")
        assert "only-here" in one.kubectl("get", "namespaces")
        assert "only-here" not in other.kubectl("get", "namespaces")


def test_a_flag_that_does_not_exist_is_reported_with_the_log(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="unknown flag: --rhizome"):
        ControlPlane(Here(tmp_path), options=["--rhizome"]).__enter__()


def test_a_missing_program_is_named_with_what_builds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD", "/nowhere/etcd")
    with pytest.raises(
        LabError, match=r"/nowhere/etcd: build it with `scripts/kube-binaries etcd`, or let ETCD name one"
    ):
        binary("etcd")
    monkeypatch.setenv("ETCD", os.devnull)
    with pytest.raises(LabError):
        binary("etcd")
