#!/usr/bin/env python3
"""Write what the charts take from the code: values.schema.json (the daemons' settings tables) and Grafana's dashboards.

A test fails when a file is stale. What a schema cannot say in words is said by the charts' templates/_validate.tpl.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import agent.sidecar.settings
import seed_server.settings
import shoot_client.settings
from agent.kinds import ADDRESS, CIDR, LABEL, LISTEN, TARGET
from agent.settings import REQUIRED, BaseSettings, Spec, specs
from scripts.dashboards import dashboards

CHARTS = Path(__file__).parent.parent / "charts"
Schema = dict[str, Any]

#: Settings that a chart decides, or that mean nothing in a pod.
SEED_OWN = {
    *(
        "tls_ca",
        "tls_certificate",
        "tls_key",
        "runtime_dir",
        "ipam_file",
        "ipam_configmaps",
        "egress_listen",
        "egress_client_ca",
    ),
    *("egress_tls_certificate", "egress_tls_key", "egress_socket", "egress_socket_owner", "egress_socket_mode"),
    *("direct_secret", "once_file", "oidc_jwks_file", "oidc_ca", "deny_file"),
    *("enrolment_file", "enrolment_secret", "enrolment_dir"),
}
SHOOT_OWN = {
    *("tls_ca", "tls_certificate", "tls_key", "runtime_dir", "node_name", "node_addresses", "facts_file", "kubeconfig"),
    *("proxy_credentials_file", "token_file"),
}

#: Of a sidecar, likewise.
SIDECAR_OWN = {"control_plane", "tls_ca", "tls_certificate", "tls_key", "runtime_dir", "health_listen"}

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
_OR_NONE = "^$|{}"
_PATTERNS = {
    id(LABEL): "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
    id(LISTEN): r"^([0-9.]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$",
    id(TARGET): r"^([A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$",
    id(CIDR): "^[0-9a-fA-F:.]+/[0-9]{1,3}$",
    id(ADDRESS): "^[0-9a-fA-F:.]+$",
}


def table(role: type[BaseSettings], own: set[str]) -> Schema:
    """The settings of a role that a chart leaves to its user."""
    rows = [spec for spec in specs(role) if spec.name not in own]
    assert own <= {spec.name for spec in specs(role)}, "a setting has another name now"
    return closed(**{spec.name: _setting(spec) for spec in rows})


def _setting(spec: Spec[Any]) -> Schema:
    kinds = [_TYPES[kind] for kind in spec.kind.toml]
    item: Schema = {"type": kinds[0] if len(kinds) == 1 else "number"}
    if bounds := re.fullmatch(r"([0-9.]+)\.\.([0-9.]+)", spec.kind.rule):
        item |= {"minimum": float(bounds[1]), "maximum": float(bounds[2])}
        item |= {key: int(item[key]) for key in ("minimum", "maximum") if item[key] == int(item[key])}
    if isinstance(spec.default, Enum):
        item |= {"enum": [member.value for member in type(spec.default)]}
    if pattern := _PATTERNS.get(id(spec.kind)):
        item |= {"pattern": pattern}
    words = {"description": spec.help + (f" ({spec.unit})" if spec.unit else "")}
    if spec.many:
        return {"type": "array", "items": item, **words}
    if (spec.optional or spec.default is REQUIRED) and "pattern" in item:
        # An empty one is spoken of in words, by the chart or by the daemon.
        item["pattern"] = _OR_NONE.format(item["pattern"])
    return item | words


def closed(**properties: Schema) -> Schema:
    """An object with these keys and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def text(description: str = "", **more: Any) -> Schema:
    return {"type": "string", **({"description": description} if description else {}), **more}


def choice(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


ANY_OBJECT: Schema = {"type": "object"}
OBJECTS: Schema = {"type": "array", "items": ANY_OBJECT}
FLAG: Schema = {"type": "boolean"}
PORT_NUMBER: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
WORDS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
NAME = "^$|^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
SECRET_NAME = text("name of an existing Secret", pattern=NAME)
CONFIG_MAP_NAME = text("name of an existing ConfigMap", pattern=NAME)
FILE = text("a key of a Secret, and the name of its file", pattern=r"^[-._a-zA-Z0-9$()]+$")
KEYS = closed(ca=FILE, certificate=FILE, key=FILE)
DURATION = text("such as 2160h", pattern=r"^([0-9]+(h|m|s))+$")
ISSUER = closed(name=text(), kind=choice("Issuer", "ClusterIssuer"), group=text())
COMMON: Mapping[str, Schema] = {
    "global": ANY_OBJECT,
    "image": closed(
        repository=text(minLength=1),
        tag=text(),
        digest=text(pattern="^$|^sha256:[0-9a-f]{64}$"),
        pullPolicy=choice("Always", "IfNotPresent", "Never"),
        pullSecrets=OBJECTS,
    ),
    "fullnameOverride": text(pattern="^$|^[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?$"),
    "podLabels": WORDS,
    "podAnnotations": WORDS,
    "userspaceWireGuard": FLAG,
    "resources": ANY_OBJECT,
    "nodeSelector": WORDS,
    "tolerations": OBJECTS,
    "affinity": ANY_OBJECT,
    "priorityClassName": text(),
    "podMonitor": closed(enabled=FLAG, labels=WORDS, interval=DURATION),
    "prometheusRule": closed(
        enabled=FLAG, labels=WORDS, runbookBase=text(), disabled={"type": "array", "items": {"type": "string"}}
    ),
    "dashboard": closed(enabled=FLAG, labels=WORDS),
}


def _schema(title: str, **properties: Schema) -> Schema:
    body = closed(**dict(sorted({**COMMON, **properties}.items())))
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": title, **body}


def _sidecar() -> Schema:
    issuer = ISSUER | {"required": ["name"]}
    shape = closed(
        name=text(pattern="^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$"),
        tls=closed(secretName=SECRET_NAME, csi=closed(issuer=issuer, duration=DURATION)),
        healthPort=PORT_NUMBER,
        settings=table(agent.sidecar.settings.Settings, SIDECAR_OWN),
    )
    return shape | {"required": ["name", "tls"]}


def seed_schema() -> Schema:
    return _schema(
        "Values of rhizome-seed-server",
        settings=table(seed_server.settings.Settings, SEED_OWN),
        replicas={"type": "integer", "minimum": 0, "description": "at most 1, for now"},
        tls=closed(
            secretName=SECRET_NAME,
            keys=KEYS,
            certManager=closed(
                enabled=FLAG,
                issuerRef=ISSUER,
                dnsNames={"type": "array", "items": {"type": "string"}},
                duration=DURATION,
                renewBefore=DURATION,
            ),
        ),
        service=closed(
            name=text(pattern="^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"),
            type=choice("ClusterIP", "NodePort", "LoadBalancer"),
            annotations=WORDS,
            clusterIP=text(pattern="^$|^[0-9a-fA-F:.]+$"),
            ipFamilyPolicy=choice("SingleStack", "PreferDualStack", "RequireDualStack"),
        ),
        oidc=closed(
            configMapName=CONFIG_MAP_NAME,
            caKey=text(pattern="^[-._a-zA-Z0-9]*$"),
            jwksKey=text(pattern="^[-._a-zA-Z0-9]*$"),
        ),
        direct=closed(secretName=SECRET_NAME, key=FILE),
        enrolment=closed(
            tokens=closed(secretName=SECRET_NAME, key=FILE), signing=closed(secretName=SECRET_NAME, key=FILE)
        ),
        denyList=closed(configMapName=CONFIG_MAP_NAME, key=text("a key of it", pattern="^[-._a-zA-Z0-9]+$")),
        egress=closed(
            enabled=FLAG,
            listen=text(pattern=_PATTERNS[id(LISTEN)]),
            clientCA=closed(secretName=SECRET_NAME, key=FILE),
            certificate=closed(secretName=SECRET_NAME),
            selector=closed(enabled=FLAG, caBundle=text(), clientCert=text(), clientKey=text()),
        ),
        sidecars={"type": "array", "items": _sidecar()},
        persistence=closed(
            enabled=FLAG,
            size=text(pattern="^[0-9]+(Ki|Mi|Gi)$"),
            storageClassName=text(),
            accessModes={"type": "array", "items": choice("ReadWriteOnce", "ReadWriteOncePod"), "minItems": 1},
        ),
        ledger=closed(
            enabled=FLAG,
            namespace=text("a namespace that is there", pattern=_OR_NONE.format(_PATTERNS[id(LABEL)])),
            name=text("a DNS label", pattern=_OR_NONE.format(_PATTERNS[id(LABEL)])),
        ),
        sysctls={
            "type": "array",
            "items": closed(name=text(pattern=r"^net\."), value={"type": "string"}) | {"required": ["name", "value"]},
        },
        topologySpreadConstraints=OBJECTS,
        podDisruptionBudget=closed(enabled=FLAG),
        networkPolicy=closed(
            enabled=FLAG,
            tunnelFrom=OBJECTS,
            directFrom=OBJECTS,
            egressFrom=OBJECTS,
            metricsFrom=OBJECTS,
            extraEgress=OBJECTS,
            apiServer=closed(to=OBJECTS, ports={"type": "array", "items": PORT_NUMBER, "minItems": 1}),
        ),
    )


def shoot_schema() -> Schema:
    return _schema(
        "Values of rhizome-shoot-client",
        settings=table(shoot_client.settings.Settings, SHOOT_OWN),
        tls=closed(
            source=choice("secret", "csi", "hostPath", "token"),
            token=closed(
                caSecret=closed(name=SECRET_NAME, key=FILE),
                audience=text("the seed server's, as its oidc_audiences say"),
                expirationSeconds={"type": "integer", "minimum": 600, "description": "Kubernetes' own least is 600"},
            ),
            secret=closed(name=SECRET_NAME, keys=KEYS),
            csi=closed(issuer=ISSUER, duration=DURATION),
            hostPath=closed(path=text("an absolute path", pattern="^$|^/"), keys=KEYS),
        ),
        nodeObject=closed(names={"type": "array", "items": text(pattern="^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")}),
        proxyCredentials=closed(secretName=SECRET_NAME, key=FILE),
        extraEnv=OBJECTS,
        cleanup=FLAG,
        updateStrategy=ANY_OBJECT,
    )


def files() -> dict[Path, str]:
    """Each file that is made here, and what it has to say."""
    made = {
        CHARTS / "rhizome-seed-server" / "values.schema.json": seed_schema(),
        CHARTS / "rhizome-shoot-client" / "values.schema.json": shoot_schema(),
    }
    made |= {CHARTS / chart / "files" / "dashboard.json": board for chart, board in dashboards().items()}
    return {path: json.dumps(content, indent=1) + "\n" for path, content in made.items()}


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")
