"""The charts as Helm renders them: goldens, what every pod of ours promises, settings that the daemons take, refusals in words."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

import agent.sidecar.settings
from agent.cli.flags import load
from agent.identity import Identity, Role
from agent.kinds import Namespaced
from ipam.stores.kubernetes import SHARDS
from lab.helm import CHARTS, ROOT, SEED, SHOOT, HelmError, Object, objects, only, pod, text
from seed_server.settings import Settings as SeedSettings
from shoot_client.settings import Settings as ShootSettings

GOLDEN = Path(__file__).parents[2] / "golden" / "charts"
ROLES: dict[str, type[SeedSettings] | type[ShootSettings]] = {SEED: SeedSettings, SHOOT: ShootSettings}
CASES = {
    "seed-server": (SEED, ROOT / "examples/charts/seed-server.yaml"),
    "seed-server-full": (SEED, CHARTS / SEED / "ci/full-values.yaml"),
    "shoot-client": (SHOOT, ROOT / "examples/charts/shoot-client.yaml"),
    "shoot-client-full": (SHOOT, CHARTS / SHOOT / "ci/full-values.yaml"),
}


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    return {name: text(chart, values) for name, (chart, values) in CASES.items()}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, rendered: dict[str, str]) -> tuple[str, list[Object]]:
    return CASES[request.param][0], objects(rendered[request.param])


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, rendered: dict[str, str]) -> None:
    """RHIZOME_WRITE_GOLDEN=1 writes them again. Dashboards and alerts are left out: they have tests of their own."""
    parts = rendered[name].split("\n---\n")
    got = "\n---\n".join(part for part in parts if "kind: PrometheusRule" not in part and "-dashboard\n" not in part)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("RHIZOME_WRITE_GOLDEN"):
        path.write_text(got, encoding="utf-8")
    assert got == path.read_text(encoding="utf-8")


def containers(found: list[Object]) -> Iterator[Object]:
    spec = pod(found)["spec"]
    yield from spec.get("initContainers", ())
    yield from spec["containers"]


def test_every_container_has_what_it_must_have_and_no_right_more(case: tuple[str, list[Object]]) -> None:
    _, found = case
    for container in containers(found):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe].keys() & {"httpGet", "exec"}
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "cpu" not in container["resources"].get("limits", {})
        assert container["securityContext"] == {
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        }


def test_every_pod_is_closed(case: tuple[str, list[Object]]) -> None:
    _, found = case
    spec = pod(found)["spec"]
    rules = [rule for item in found if item["kind"] in ("Role", "ClusterRole") for rule in item["rules"]]
    shards = [f"vpn-rhizome-seed-server-{n}" for n in range(SHARDS)]
    assert rules in (
        [],
        [{"apiGroups": [""], "resources": ["nodes"], "resourceNames": ["node-1", "node-2"], "verbs": ["get", "watch"]}],
        [
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "create"]},
            {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": shards, "verbs": ["get", "update"]},
        ],
    )
    assert spec["automountServiceAccountToken"] is bool(rules) and spec["enableServiceLinks"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec.get("hostPID") and not spec.get("hostIPC")
    paths = [volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume]
    assert paths in ([], ["/dev/net/tun"])
    for volume in spec["volumes"]:
        assert "secret" not in volume or volume["secret"]["defaultMode"] == 0o400
    account = only(found, "ServiceAccount")
    assert account["metadata"]["name"] == spec["serviceAccountName"]
    assert account["automountServiceAccountToken"] is False


def test_what_is_named_is_there(case: tuple[str, list[Object]]) -> None:
    """Ports of probes, Service, NetworkPolicy and PodMonitor; volumes of mounts; labels of selectors; the namespace."""
    _, found = case
    template = pod(found)
    (container,) = template["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
    named: list[Any] = []
    selectors = []
    for item in found:
        if not item["kind"].startswith("ClusterRole"):
            assert item["metadata"]["namespace"] == "shoot--garden--a"
        spec = item.get("spec", {})
        if item["kind"] == "Service":
            named += [port["targetPort"] for port in spec["ports"]]
            selectors.append(spec["selector"])
            assert spec["publishNotReadyAddresses"] is True
        elif item["kind"] == "NetworkPolicy":
            named += [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
            selectors.append(spec["podSelector"]["matchLabels"])
        elif item["kind"] == "PodMonitor":
            named += [end["port"] for end in spec["podMetricsEndpoints"]]
            selectors.append(spec["selector"]["matchLabels"])
        elif item["kind"] in ("Deployment", "DaemonSet", "PodDisruptionBudget"):
            selectors.append(spec["selector"]["matchLabels"])
    named += [container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert {port for port in named if isinstance(port, str)} <= ports.keys()
    assert all(selector.items() <= template["metadata"]["labels"].items() for selector in selectors)
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in template["spec"]["volumes"]}


def settings_of(chart: str, found: list[Object], tmp_path: Path) -> SeedSettings | ShootSettings:
    """The daemon's own parser, over the rendered file and environment. Files of certificates are put where they are mounted."""
    root = tmp_path / "etc"
    config = only(found, "ConfigMap", chart)["data"]["config.toml"].replace("/etc/rhizome", str(root))
    (container,) = pod(found)["spec"]["containers"]
    known = {"NODE_NAME": "node-1", "status.hostIPs": "10.250.0.7,2001:db8:10::7"}
    env = {}
    for entry in container.get("env", ()):
        field = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
        value = known.get(field, known.get(entry["name"], "")) if field else entry["value"]
        env[entry["name"]] = value.replace("$(NODE_NAME)", "node-1").replace("/etc/rhizome", str(root))
    for mount in container["volumeMounts"]:
        if mount["mountPath"].startswith("/etc/rhizome"):
            (root / Path(mount["mountPath"]).name).mkdir(parents=True, exist_ok=True)
    for name in ("tls/ca.crt", "tls/tls.crt", "tls/tls.key", "tls/client-node-1.crt", "tls/client-node-1.key"):
        (root / name).write_text("-")
    for name in ("egress-client-ca/ca.crt", "egress-tls/tls.crt", "egress-tls/tls.key", "proxy/credentials"):
        if (root / name).parent.exists():
            (root / name).write_text("-")
    if (root / "direct").exists():
        (root / "direct/direct.key").write_text("-" * 32)
    if (root / "enrolment").exists():
        (root / "enrolment/tokens.txt").write_text("# none yet\n")
        (root / "signing/secret").write_text("-" * 32)
    if (root / "denied").exists():
        (root / "denied/denied").write_text("# nobody yet\n")
    path = root / "config.toml"
    path.write_text(config)
    assert container["args"][:2] == [chart, "--config"]
    return load(ROLES[chart], ["--config", str(path)], env=env).settings


def test_the_daemon_takes_what_is_rendered(case: tuple[str, list[Object]], tmp_path: Path) -> None:
    chart, found = case
    got = settings_of(chart, found, tmp_path)
    spec = pod(found)["spec"]
    (container,) = spec["containers"]
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert str(got.runtime_dir) == "/run/rhizome" and "/run" in writable
    assert got.health_listen is not None
    if isinstance(got, SeedSettings):
        assert got.ipam_configmaps or (got.ipam_file and str(got.ipam_file.parent) in writable)
        assert got.enrolment_dir is None or str(got.enrolment_dir.parent) in writable
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert (ports["tunnel"], ports["metrics"]) == (got.listen[0].port, got.health_listen.port)
        assert ports.get("egress") == (got.egress_listen[0].port if got.egress_listen else None)
    else:
        assert spec["hostNetwork"] is True and spec["dnsPolicy"] == "Default"
        assert got.node_name == "node-1" and list(map(str, got.node_addresses)) == ["10.250.0.7", "2001:db8:10::7"]
        assert container["readinessProbe"]["httpGet"]["port"] == got.health_listen.port


def test_identities_are_those_that_the_daemons_demand(rendered: dict[str, str]) -> None:
    (uri,) = only(objects(rendered["seed-server-full"]), "Certificate")["spec"]["uris"]
    assert Identity.parse(uri) == Identity("shoot--garden--b", Role.SEED_SERVER)
    (csi,) = [v["csi"] for v in pod(objects(rendered["shoot-client-full"]))["spec"]["volumes"] if "csi" in v]
    uri = csi["volumeAttributes"]["csi.cert-manager.io/uri-sans"].replace("${POD_NAME}", "vpn-abcde")
    assert Identity.parse(uri) == Identity("shoot--garden--b", Role.SHOOT_CLIENT, "vpn-abcde")


def test_the_egress_selector_points_at_the_service(rendered: dict[str, str]) -> None:
    found = objects(rendered["seed-server-full"])
    selector = yaml.safe_load(only(found, "ConfigMap", "-egress")["data"]["egress-selector.yaml"])
    (selection,) = selector["egressSelections"]
    url = urlsplit(selection["connection"]["transport"]["tcp"]["url"])
    service = only(found, "Service")
    assert url.hostname == service["metadata"]["name"]
    assert url.port in [port["port"] for port in service["spec"]["ports"]]
    assert url.hostname in only(found, "Certificate")["spec"]["dnsNames"]


def test_another_setting_is_another_pod(rendered: dict[str, str]) -> None:
    """A changed file alone would not be read by a daemon that runs."""
    before = pod(objects(rendered["seed-server"]))["metadata"]["annotations"]["checksum/config"]
    changed = objects(text(*CASES["seed-server"], values={"settings": {"mtu_bytes": 1400}}))
    assert pod(changed)["metadata"]["annotations"]["checksum/config"] != before


def test_the_last_upgrade_cleans_the_nodes() -> None:
    found = objects(text(*CASES["shoot-client"], values={"cleanup": True}))
    (container,) = pod(found)["spec"]["containers"]
    assert "rhizome-agent cleanup" in container["command"][-1] and "args" not in container
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()


def test_a_sidecar_is_a_patch_with_settings_that_it_takes(rendered: dict[str, str], tmp_path: Path) -> None:
    found = objects(rendered["seed-server-full"])
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (tmp_path / name).write_text("-")
    for name, port in (("kube-apiserver", 9843), ("prometheus", 9844)):
        data = only(found, "ConfigMap", f"-sidecar-{name}")["data"]
        config = tmp_path / "config.toml"
        config.write_text(data["config.toml"].replace("/etc/rhizome/tls", str(tmp_path)))
        got = load(agent.sidecar.settings.Settings, ["--config", str(config)], env={}).settings
        service = only(found, "Service")
        assert str(got.server) == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
        assert list(map(str, got.protected_networks)) == ["10.243.0.0/16"]
        template = yaml.safe_load(data["pod-patch.yaml"])["spec"]["template"]
        (container,) = template["spec"]["initContainers"]
        assert container["restartPolicy"] == "Always" and "readinessProbe" not in container
        assert got.health_listen and container["startupProbe"]["httpGet"]["port"] == port == got.health_listen.port
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
        assert str(got.runtime_dir.parent) in writable and writable <= {"/run", "/dev/net/tun"}
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert volumes.keys() == {mount["name"] for mount in container["volumeMounts"]}
        assert all(volume.startswith("rhizome-") for volume in volumes), "the pod has volumes of its own"
        if csi := volumes["rhizome-tls"].get("csi"):
            uri = csi["volumeAttributes"]["csi.cert-manager.io/uri-sans"].replace("${POD_NAME}", "kube-apiserver-1")
            assert Identity.parse(uri) == Identity("shoot--garden--b", Role.SIDECAR, "kube-apiserver-1")


def test_a_sidecar_that_leaves_is_an_init_container_that_ends() -> None:
    values = {
        "sidecars": [{"name": "prometheus", "tls": {"secretName": "p"}, "settings": {"once": True}}],
        "settings": {"direct_endpoints": ["10.243.7.7:51821"]},
        "direct": {"secretName": "vpn-direct"},
        "persistence": {"enabled": True},
    }
    found = objects(text(*CASES["seed-server"], values=values))
    patch = yaml.safe_load(only(found, "ConfigMap", "-sidecar-prometheus")["data"]["pod-patch.yaml"])
    (container,) = patch["spec"]["template"]["spec"]["initContainers"]
    assert not {"restartPolicy", "startupProbe", "livenessProbe", "readinessProbe"} & container.keys()
    server = next(o for o in found if o["kind"] == "ConfigMap" and o["data"].keys() == {"config.toml"})
    config = tomllib.loads(server["data"]["config.toml"])
    mounts = {m["name"]: m["mountPath"] for m in pod(found)["spec"]["containers"][0]["volumeMounts"]}
    assert config["direct_secret"] == f"{mounts['direct']}/direct.key"
    for missing in ("direct", "persistence"):
        with pytest.raises(HelmError, match=r"settings\.once: who leaves cannot be told of anything new"):
            text(*CASES["seed-server"], values={key: value for key, value in values.items() if key != missing})


def test_the_direct_path_of_sidecars_has_a_port_at_an_address_that_stays() -> None:
    values = {
        "settings": {"direct_endpoints": ["10.243.7.7:51900"], "direct_port": 51900},
        "service": {"clusterIP": "10.243.7.7"},
    }
    found = objects(text(*CASES["seed-server"], values=values))
    service = only(found, "Service")["spec"]
    assert service["clusterIP"] == "10.243.7.7"
    (port,) = [port for port in service["ports"] if port["protocol"] == "UDP"]
    assert (port["port"], port["targetPort"]) == (51900, "direct")
    (rule,) = [r for r in only(found, "NetworkPolicy")["spec"]["ingress"] if r["ports"][0]["protocol"] == "UDP"]
    assert rule == {"ports": [{"port": "direct", "protocol": "UDP"}]}
    assert {"name": "direct", "containerPort": 51900, "protocol": "UDP"} in pod(found)["spec"]["containers"][0]["ports"]


def test_reading_the_node_object_takes_rights_of_its_own(rendered: dict[str, str]) -> None:
    assert "kind: ClusterRole" not in rendered["shoot-client"]
    found = objects(text(*CASES["shoot-client"], values={"settings": {"node_object": True}}))
    (rule,) = only(found, "ClusterRole")["rules"]
    assert rule == {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "watch"]}
    binding = only(found, "ClusterRoleBinding")
    assert binding["roleRef"]["name"] == only(found, "ClusterRole")["metadata"]["name"]
    (subject,) = binding["subjects"]
    assert subject["name"] == pod(found)["spec"]["serviceAccountName"] and subject["namespace"] == "shoot--garden--a"


def test_a_ledger_in_config_maps_takes_rights_of_its_own(rendered: dict[str, str], tmp_path: Path) -> None:
    """For the ConfigMaps that the setting names, for the pod's account, and a way to the API server."""
    assert "kind: Role" not in rendered["seed-server"]
    at = {"namespace": "ledgers", "name": "garden-a"}
    values = {"ledger": {"enabled": True, **at}, "networkPolicy": {"apiServer": API_SERVER}}
    found = objects(text(*CASES["seed-server"], values=values))
    role, binding = only(found, "Role"), only(found, "RoleBinding")
    assert role["metadata"].items() >= at.items() and binding["metadata"].items() >= at.items()
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "garden-a"}
    spec = pod(found)["spec"]
    account = {"kind": "ServiceAccount", "name": spec["serviceAccountName"], "namespace": "shoot--garden--a"}
    assert binding["subjects"] == [account] and spec["automountServiceAccountToken"] is True
    got = settings_of(SEED, found, tmp_path)
    assert isinstance(got, SeedSettings) and got.ipam_configmaps == Namespaced("ledgers", "garden-a")
    (_, rule) = role["rules"]
    assert rule["resourceNames"] == [f"garden-a-{n}" for n in range(SHARDS)]
    (way,) = only(found, "NetworkPolicy")["spec"]["egress"]
    assert way == {"to": API_SERVER["to"], "ports": [{"port": port, "protocol": "TCP"} for port in (443, 6443)]}


API_SERVER = {"to": [{"ipBlock": {"cidr": "10.243.0.10/32"}}]}
LEDGER = {"ledger": {"enabled": True}}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (SEED, {"replicas": 2}, "one replica per control plane is supported"),
    (SEED, {"replicas": "1"}, "replicas: Invalid type"),
    (SEED, {"settings": {"control_plane": "Shoot"}}, "settings.control_plane: Does not match pattern"),
    (SEED, {"settings": {"control_plane": ""}}, "settings.control_plane: required: the name of the control plane"),
    (SEED, {"settings": {"mtu_bytes": 576, "tls_key": "/x"}}, "Additional property tls_key is not allowed"),
    (SEED, {"tls": {"secretName": ""}}, "rhizome-agent pki makes them"),
    (SEED, {"egress": {"enabled": True}}, "egress.clientCA.secretName: required"),
    (SEED, {"sidecars": [{"name": "a", "tls": {}}]}, "tls.secretName or tls.csi: exactly one of them"),
    (SEED, {"sidecars": [{"name": "a", "tls": {"secretName": "a"}, "settings": {"tls_key": "/x"}}]}, "Additional property tls_key is not allowed"),
    (SEED, {"podMonitor": {"enabled": True}}, "networkPolicy.metricsFrom: empty: Prometheus would be kept out"),
    (SEED, {"prometheusRule": {"enabled": True, "disabled": ["Nope"]}}, "there is no alert Nope; there are RhizomeTunnelDown"),
    (SEED, {"sysctls": [{"name": "kernel.panic", "value": "1"}]}, "sysctls.0.name: Does not match pattern"),
    (SHOOT, {"settings": {"server": ""}}, "settings.server: required: host:port of the seed server"),
    (SHOOT, {"settings": {"node_name": "x"}}, "Additional property node_name is not allowed"),
    (SHOOT, {"settings": {"kubeconfig": "/x"}}, "Additional property kubeconfig is not allowed"),
    (SHOOT, {"tls": {"secret": {"keys": {"certificate": "tls.crt"}}}}, "all nodes would share one identity"),
    (SHOOT, {"tls": {"source": "mail"}}, 'must be one of the following: "secret", "csi", "hostPath", "token"'),
    (SHOOT, {"tls": {"source": "token"}}, "tls.token.caSecret.name: required"),
    (SHOOT, {"tls": {"source": "token", "token": {"expirationSeconds": 60}}}, "Must be greater than or equal to 600"),
    (SEED, {"oidc": {"caKey": "ca.crt"}}, "oidc.configMapName: required"),
    (SEED, {"enrolment": {"tokens": {"secretName": "t"}}}, "enrolment.signing.secretName: required"),
    (SEED, {"enrolment": {"tokens": {"secretName": "t"}, "signing": {"secretName": "s"}}}, "it takes persistence.enabled"),
    (SEED, {"settings": {"enrolment_dir": "/tmp"}}, "Additional property enrolment_dir is not allowed"),
    (SHOOT, {"podMonitor": {"enabled": True}}, "Prometheus could not reach it"),
    (SEED, LEDGER, "networkPolicy.apiServer.to: empty: the seed server could not reach the API server"),
    (SEED, {"ledger": {"enabled": True, "namespace": "ledgers"}, "networkPolicy": {"apiServer": API_SERVER}}, "ledger.name: required in a namespace of its own"),
    (SEED, {"ledger": {"name": "a"}}, "ledger.enabled: false, while ledger.namespace or ledger.name is given"),
    (SEED, {"ledger": {"enabled": "yes"}}, "ledger.enabled: Invalid type"),
    (SEED, {"ledger": {"enabled": True, "name": "a/b"}}, "ledger.name: Does not match pattern"),
    (SEED, {"ledger": {"enabled": True, "shards": 8}}, "Additional property shards is not allowed"),
    (SEED, {**LEDGER, "networkPolicy": {"apiServer": {**API_SERVER, "ports": [0]}}}, "networkPolicy.apiServer.ports.0: Must be greater than or equal to 1"),
    (SEED, {"settings": {"ipam_configmaps": "a/b"}}, "Additional property ipam_configmaps is not allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("chart", "values", "words"), REFUSED)
def test_refused_in_words(chart: str, values: dict[str, Any], words: str) -> None:
    example = CASES["seed-server" if chart == SEED else "shoot-client"]
    with pytest.raises(HelmError) as refused:
        text(*example, values=values)
    assert words in str(refused.value)


def test_the_generated_files_are_what_the_code_says() -> None:
    from scripts.charts import files

    for path, content in files().items():
        assert path.read_text(encoding="utf-8") == content, f"{path.relative_to(ROOT)} is stale: run make docs"


def test_a_token_takes_the_place_of_the_certificate() -> None:
    """What the one chart projects is what the other one's server accepts."""
    values: dict[str, Any] = {"tls": {"source": "token", "token": {"caSecret": {"name": "vpn-ca"}}}}
    found = objects(text(*CASES["shoot-client"], values=values))
    spec = pod(found)["spec"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "tls"]
    ca, token = (next(iter(source.values())) for source in volume["projected"]["sources"])
    assert ca == {"name": "vpn-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    env = {item["name"]: item.get("value") for item in spec["containers"][0]["env"]}
    assert env["RHIZOME_TOKEN_FILE"] == f"/etc/rhizome/tls/{token['path']}"
    assert not {"RHIZOME_TLS_CERTIFICATE", "RHIZOME_TLS_KEY"} & env.keys()
    assert spec["automountServiceAccountToken"] is False, "its own token is for the seed server alone"

    settings = {
        "oidc_issuers": ["https://api.shoot.example"],
        "oidc_subjects": [f"system:serviceaccount:kube-system:{spec['serviceAccountName']}=shoot-client"],
    }
    oidc = {"configMapName": "issuer", "caKey": "ca.crt", "jwksKey": "jwks.json"}
    server = objects(text(*CASES["seed-server"], values={"settings": settings, "oidc": oidc}))
    config = tomllib.loads(only(server, "ConfigMap")["data"]["config.toml"])
    assert config["oidc_ca"] == "/etc/rhizome/oidc/ca.crt" and config["oidc_jwks_file"] == "/etc/rhizome/oidc/jwks.json"
    assert token["audience"] == f"spiffe://{config['control_plane']}/seed-server" and "oidc_audiences" not in config
    (mount,) = [m for m in pod(server)["spec"]["containers"][0]["volumeMounts"] if m["name"] == "oidc"]
    assert mount["mountPath"] == "/etc/rhizome/oidc"


def test_the_deny_list_is_a_config_map_that_changes_under_a_running_pod() -> None:
    """Mounted as a directory: the kubelet never changes what is mounted as a subPath."""
    found = objects(text(*CASES["seed-server"], values={"denyList": {"configMapName": "vpn-denied"}}))
    config = tomllib.loads(only(found, "ConfigMap")["data"]["config.toml"])
    spec = pod(found)["spec"]
    (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "denied"]
    assert "subPath" not in mount and f"{mount['mountPath']}/denied" == config["deny_file"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "denied"]
    assert volume["configMap"] == {"name": "vpn-denied"}, (
        "one that is missing keeps the pod from starting: nobody comes back"
    )
