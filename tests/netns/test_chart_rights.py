"""The daemons, with the charts' configuration, live with the rights that the charts give: root without any capability but NET_ADMIN, no new
privileges, a root file system that is read-only but for the mounted directories. (Seccomp is not tried: that profile is the runtime's.)"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.__main__ import main
from lab.helm import ROOT, SEED, SHOOT, objects, only, pod, text

pytestmark = pytest.mark.netns

NET_ADMIN = 1 << 12
CP = "shoot--garden--a"
#: All that is mounted turns read-only, but for what a container has writable. Then the daemon, and questions to it.
INSIDE = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs none /run
for path in $WRITABLE; do mkdir -p "$path"; mount --bind "$path" "$path"; done
awk '$3 !~ /^(proc|sysfs|cgroup2?|devpts|mqueue)$/ {print $2}' /proc/self/mounts | while read -r path; do
  case "$path" in /dev | /dev/* | /proc/* | /sys/* | /run | /run/*) continue ;; esac
  for writable in $WRITABLE; do [ "$path" != "$writable" ] || continue 2; done
  mount -o remount,bind,ro "$path"
done
if touch /etc/written 2>/dev/null || touch "$PLACE/written" 2>/dev/null; then echo "not read-only" >&2; exit 1; fi
ip link set lo up
setpriv --bounding-set=-all,+net_admin --inh-caps=-all --no-new-privs "$@" >&2 &
daemon=$!
trap 'kill $daemon; wait $daemon || true' EXIT
for _ in $(seq 100); do
  status=$(curl -sf "http://127.0.0.1:$PORT/status" || true)
  [ -z "$status" ] || ! ip link show "$DEVICE" >/dev/null 2>&1 || break
  kill -0 $daemon || exit 1
  sleep 0.1
done
curl -sf "http://127.0.0.1:$PORT/healthz" >&2
nft list table inet rhizome >&2
grep -E '^(CapBnd|CapEff|NoNewPrivs)' /proc/$daemon/status | tr -d '\t' | tr '\n' ' '
echo
echo "$status"
"""


@pytest.mark.parametrize("chart", [SEED, SHOOT])
def test_the_daemon_lives_with_the_charts_rights(chart: str, tmp_path: Path) -> None:
    pki = tmp_path / "tls"
    assert main(["pki", "init", "--dir", str(pki), "--control-plane", CP]) == 0
    assert main(["pki", "server", "--dir", str(pki), "--dns", "vpn.example"]) == 0
    assert main(["pki", "client", "--dir", str(pki), "--name", "node-1"]) == 0
    (pki / "server.crt").rename(pki / "tls.crt")
    (pki / "server.key").rename(pki / "tls.key")
    example = ROOT / "examples/charts" / ("seed-server.yaml" if chart == SEED else "shoot-client.yaml")
    found = objects(text(chart, example, values={"userspaceWireGuard": True}))
    (container,) = pod(found)["spec"]["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    mounted = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert set(mounted) == {"/run", "/dev/net/tun"} | ({"/var/lib/rhizome"} if chart == SEED else set())
    state = tmp_path / "state"
    toml = only(found, "ConfigMap")["data"]["config.toml"]
    config = tmp_path / "config.toml"
    config.write_text(toml.replace("/etc/rhizome", str(tmp_path)).replace("/var/lib/rhizome", str(state)))
    given = {entry["name"]: entry.get("value", "") for entry in container.get("env", ())}
    env = {
        name: v.replace("$(NODE_NAME)", "node-1").replace("/etc/rhizome", str(tmp_path)) for name, v in given.items()
    }
    env |= {"RHIZOME_NODE_ADDRESSES": "10.250.0.7"} if chart == SHOOT else {}
    env.pop("NODE_NAME", None)
    env |= {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(Path.home()),  # where wireguard-go is
        "PYTHONDONTWRITEBYTECODE": "1",
        "PLACE": str(tmp_path),
        "WRITABLE": str(state),
        "DEVICE": "rz-seed" if chart == SEED else "rz-shoot",
        "PORT": "9841" if chart == SEED else "9842",
    }
    module = chart.removeprefix("rhizome-").replace("-", "_")
    daemon = [sys.executable, "-m", module, "--config", str(config)]
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", INSIDE, "sh", *daemon],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rights, status = done.stdout.splitlines()[:2]
    assert rights.split() == [f"CapEff:{NET_ADMIN:016x}", f"CapBnd:{NET_ADMIN:016x}", "NoNewPrivs:1"]
    said = json.loads(status)
    assert said["verdict"] == "DOWN" and "cannot be set up" not in said["sentence"]
    assert "error" not in {json.loads(line).get("level") for line in done.stderr.splitlines() if line.startswith("{")}
