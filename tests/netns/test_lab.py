"""The lab keeps its promises: the shoot is closed, faults are faults, tools can fail, and nothing is left behind."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from lab import Impairment, Lab, LabError, Link, addresses, wait_until
from lab.iperf import iperf
from lab.processes import pids_in_network_namespace
from lab.records import records, remove_abandoned, started

pytestmark = pytest.mark.netns

SHOOT = [target.address for target in addresses.targets()]


@pytest.fixture(scope="module")
def quiet_lab() -> Iterator[Lab]:
    """One lab for all tests that change nothing in it."""
    with Lab() as lab:
        yield lab


def test_no_two_ranges_overlap() -> None:
    ranges = (
        addresses.SEED_PODS,
        addresses.INTERNET,
        addresses.SHOOT_NODES,
        addresses.SHOOT_PODS,
        addresses.SHOOT_SERVICES,
        addresses.TUNNEL,
    )
    for one, other in itertools.combinations([ip_network(text) for pair in ranges for text in pair], 2):
        assert one.version != other.version or not one.overlaps(other)


@pytest.mark.parametrize("family", [4, 6])
def test_what_should_work_without_a_tunnel(quiet_lab: Lab, family: addresses.Family) -> None:
    lab = quiet_lab
    lab.node.run(["ping", "-c1", "-W2", addresses.NET[family]])
    lab.seed.run(["ping", "-c1", "-W2", addresses.NET[family]])
    for target in addresses.targets():
        page = json.loads(lab.node.run(["curl", "-gsS", "-m5", target.url(family)]).stdout)
        assert page["machine"] == ("node1" if target.name == "node" else "pod1")


def test_dns_leads_to_the_server(quiet_lab: Lab) -> None:
    found = quiet_lab.node.run(["getent", "ahosts", addresses.SERVER_NAME]).stdout
    assert found.split()[0] == addresses.SEED.v4
    assert quiet_lab.node.run(["getent", "ahosts", "nowhere.test"], check=False).returncode != 0


@pytest.mark.parametrize("family", [4, 6])
def test_the_seed_cannot_reach_the_shoot(quiet_lab: Lab, family: addresses.Family) -> None:
    for target in addresses.targets():
        assert quiet_lab.seed.run(["curl", "-gsS", "-m1", target.url(family)], check=False).returncode != 0
        assert quiet_lab.seed.run(["ping", "-c1", "-W1", target.address[family]], check=False).returncode != 0


def test_the_shoot_lets_nothing_in(quiet_lab: Lab) -> None:
    lab = quiet_lab
    outside = ",".join([*addresses.NAT_OUTSIDE, *(address for pair in SHOOT for address in pair)])
    ports = f"22,80,{addresses.HTTP_PORT},{addresses.ECHO_PORT},{addresses.BULK_PORT}"
    refused = lab.nat.counter("refused")
    report = lab.net.run_tool("scan", outside, ports, ports)
    assert report["answers"] == []
    assert report["no_route"] == []
    assert lab.nat.counter("refused") - refused >= report["asked"]
    neighbour = ",".join(addresses.node(1))
    refused = lab.node.counter("refused")
    report = lab.nat.run_tool("scan", neighbour, ports, ports)
    assert report["answers"] == []
    assert lab.node.counter("refused") - refused >= report["asked"]


def test_the_seed_is_closed_behind_a_proxy_and_its_port_open_without(quiet_lab: Lab, make_lab: type[Lab]) -> None:
    ports = f"{addresses.SERVER_PORT},22,8080"
    answers = quiet_lab.node.run_tool("scan", addresses.SEED.v4, ports, "22")["answers"]
    assert [answer["port"] for answer in answers] == [addresses.SERVER_PORT]
    assert make_lab("haproxy-sni").node.run_tool("scan", addresses.SEED.v4, ports, "22")["answers"] == []


def test_a_scan_sees_what_is_there(quiet_lab: Lab) -> None:
    """The control of all tests that want a scan to find nothing."""
    pod = addresses.pod(1)
    ports = f"{addresses.HTTP_PORT},9"
    for address in pod:
        answers = quiet_lab.node.run_tool("scan", address, ports, f"{addresses.ECHO_PORT},9")["answers"]
        assert {(a["protocol"], a["port"], a["answer"]) for a in answers} == {
            ("tcp", addresses.HTTP_PORT, "open"),
            ("tcp", 9, "ECONNREFUSED"),
            ("udp", addresses.ECHO_PORT, "open"),
            ("udp", 9, "ECONNREFUSED"),
            ("icmp", 0, "echo reply"),
        }


def test_transfers_are_intact_both_ways(quiet_lab: Lab) -> None:
    for direction in ("up", "down"):
        report = quiet_lab.node.run_tool("transfer", addresses.SERVICE, addresses.BULK_PORT, 20_000_000, direction, 4)
        assert report["intact"] is True
        assert report["bytes"] == 20_000_000


def test_a_changed_byte_is_noticed(quiet_lab: Lab, tmp_path: Path) -> None:
    """A relay that changes one byte stands between client and server."""
    relay = tmp_path / "relay.py"
    relay.write_text(
        "import socket, sys, threading\n"
        "listener = socket.create_server(('127.0.0.1', 7777)); print('ready', flush=True)\n"
        "near, _ = listener.accept(); far = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def back():\n"
        "    seen = 0\n"
        "    while data := bytearray(far.recv(65536)):\n"
        "        if seen <= 1000 < seen + len(data): data[1000 - seen] ^= 1\n"
        "        seen += len(data); near.sendall(data)\n"
        "threading.Thread(target=back).start()\n"
        "while data := near.recv(65536): far.sendall(data)\n"
    )
    quiet_lab.node.spawn([sys.executable, str(relay), addresses.pod(1).v4, str(addresses.BULK_PORT)], name="relay")
    quiet_lab.node.processes[-1].wait_for_output("ready")
    assert quiet_lab.node.run_tool("transfer", "127.0.0.1", 7777, 100_000, "down")["intact"] is False


def test_datagrams_of_every_size(quiet_lab: Lab) -> None:
    for address in addresses.pod(1):
        report = quiet_lab.node.run_tool("datagrams", address, addresses.ECHO_PORT, "1,2,1471,1472,1473,9000,65000")
        assert report["missing"] == []
    report = quiet_lab.seed.run_tool("datagrams", addresses.pod(1).v4, addresses.ECHO_PORT, "1,100", 1)
    assert report["missing"] == [1, 100]


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_a_probe_measures_an_outage(make_lab: type[Lab], kind: str) -> None:
    lab = make_lab()
    server = lab.net.spawn(lab.net.tool("serve", "net", 8080, addresses.ECHO_PORT, addresses.BULK_PORT), name="serve")
    server.wait_for_output("ready")
    with lab.node.probe(kind, addresses.NET.v4, addresses.ECHO_PORT, rate=100) as probe:
        time.sleep(0.5)
        lab.block("down")
        time.sleep(1.0)
        lab.unblock()
        time.sleep(0.5)
    # A connect that was blocked is tried again by TCP itself, one second later.
    longest = 1.2 if kind == "udp" else 1.3
    assert (0.9 if kind == "udp" else 0.0) <= probe.report.outage_s <= longest
    assert probe.report.answered > 80
    if kind == "udp":
        assert 80 <= probe.report.lost <= 130


@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_blocking_is_silent_and_one_way(make_lab: type[Lab], direction: str) -> None:
    lab = make_lab()

    def received() -> int:
        lines = lab.net.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
        names, values = [line.split() for line in lines if line.startswith("Icmp:")]
        return int(values[names.index("InEchos")])

    lab.block(direction)
    before = received()
    assert lab.node.run(["ping", "-c2", "-i0.1", "-W1", addresses.NET.v4], check=False).returncode == 1
    assert received() - before == (2 if direction == "down" else 0)
    lab.unblock()
    lab.node.run(["ping", "-c1", "-W1", addresses.NET.v4])


def test_addresses_and_names_change(make_lab: type[Lab]) -> None:
    lab = make_lab()
    lab.resolve_server_to(addresses.PROXY, addresses.SEED)
    found = {line.split()[0] for line in lab.node.run(["getent", "ahosts", addresses.SERVER_NAME]).stdout.splitlines()}
    assert found == {addresses.PROXY.v4, addresses.SEED.v4}
    lab.change_node_address()
    lab.change_nat_address()
    for family in (4, 6):
        lab.node.run(["ping", "-c1", "-W2", addresses.NET[family]])
        assert addresses.node(1)[family] not in lab.node.run(["ip", "-o", "address"]).stdout
        assert addresses.NAT_OUTSIDE[family] + "/" not in lab.nat.run(["ip", "-o", "address"]).stdout


def test_flushing_the_ruleset_takes_other_tables_and_keeps_the_nodes_own(make_lab: type[Lab]) -> None:
    lab = make_lab()
    lab.node.nft("table inet other { }\n")
    lab.flush_nft(lab.node)
    tables = lab.node.run(["nft", "list", "tables"]).stdout.split("\n")
    assert [table for table in tables if table] == ["table inet lab"]
    assert "pod1" in lab.node.run(["curl", "-sS", "-m5", addresses.targets()[2].url()]).stdout


def test_machines_do_not_share_run(quiet_lab: Lab) -> None:
    quiet_lab.seed.run(["mkdir", "-p", "/run/rhizome-lab-test"])
    assert quiet_lab.node.run(["ls", "/run/rhizome-lab-test"], check=False).returncode != 0
    assert not Path("/run/rhizome-lab-test").exists()


def test_an_impaired_link_is_what_it_says(make_lab: type[Lab]) -> None:
    """50 Mbit/s, 40 ms, 100 packets: idle round trip, throughput, and the round trip with a full queue (24 ms more)."""
    lab = make_lab(impairment=Impairment.symmetric(rate_mbit=50, rtt_ms=40, limit_packets=100))
    lab.net.spawn(lab.net.tool("serve", "net", 8080, addresses.ECHO_PORT, addresses.BULK_PORT), name="serve")
    lab.net.processes[-1].wait_for_output("ready")
    with lab.node.probe("udp", addresses.NET.v4, addresses.ECHO_PORT, rate=50) as idle:
        time.sleep(2)
    assert idle.report.lost == 0
    assert 40.0 <= idle.report.rtt_p50_ms <= 42.5
    with lab.node.probe("udp", addresses.NET.v4, addresses.ECHO_PORT, rate=50) as loaded:
        flood = iperf(lab.node, lab.net, addresses.NET.v4, seconds=3, download=True, udp_mbit=80)
    assert 46 <= flood.mbit_s <= 50.5
    assert 0.3 <= flood.lost_share <= 0.45
    assert 58 <= loaded.report.rtt_p50_ms <= 68
    moved = lab.node.run_tool("transfer", addresses.NET, addresses.BULK_PORT, 15_000_000, "down", 4)
    assert moved["intact"] is True
    assert 25 <= moved["mbit_s"] <= 48.5
    lab.change_impairment(Impairment(down=Link(loss=0.2), up=Link()))
    with lab.node.probe("udp", addresses.NET.v4, addresses.ECHO_PORT, rate=400) as lossy:
        time.sleep(5)
    assert 0.15 <= lossy.report.lost / lossy.report.sent <= 0.25
    assert lossy.report.rtt_p50_ms < 3


# Nothing is left behind.


def members(lab: Lab) -> dict[int, str]:
    """Every process of a lab, with the time it started."""
    pids = [pid for machine in lab.machines.values() for pid in pids_in_network_namespace(machine.path)]
    assert len(pids) >= len(lab.machines) + 3, "a pause in each machine, DNS and two servers"
    return {pid: started(pid) for pid in pids}


def assert_nothing_left(directory: Path, prefix: str, processes: dict[int, str]) -> None:
    assert not directory.exists()
    assert not list(Path("/run/netns").glob(f"{prefix}*"))
    assert [pid for pid, since in processes.items() if started(pid) == since] == []


def host_links() -> set[str]:
    return {link["ifname"] for link in json.loads(subprocess.check_output(["ip", "-j", "link"]))}


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind(error: type[BaseException] | None) -> None:
    links = host_links()
    lab = Lab(nodes=2, impairment=Impairment())
    try:
        with lab:
            # A grandchild that nobody waits for, like a carrier that outlives its daemon.
            lab.node.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"])
            processes = members(lab)
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert_nothing_left(lab.directory, lab.record.prefix, processes)
    assert host_links() <= links


def test_a_lab_that_cannot_be_built_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "NET", addresses.Pair("not", "an address"))
    lab = Lab()
    with pytest.raises(LabError, match="not"):
        lab.up()
    assert_nothing_left(lab.directory, lab.record.prefix, {})


_HOLD = """
import time
from lab import Lab
with Lab() as lab:
    print(lab.directory, lab.record.prefix, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held() -> Iterator[tuple[subprocess.Popen[str], Path, str]]:
    """A lab that another process holds."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=os.curdir
    ) as owner:
        assert owner.stdout is not None
        directory, prefix = owner.stdout.readline().split()
        yield owner, Path(directory), prefix
        owner.kill()
    remove_abandoned()


def held_processes(prefix: str) -> dict[int, str]:
    paths = Path("/run/netns").glob(f"{prefix}*")
    return {pid: started(pid) for path in paths for pid in pids_in_network_namespace(path)}


def test_ctrl_c_twice_leaves_nothing(held: tuple[subprocess.Popen[str], Path, str]) -> None:
    owner, directory, prefix = held
    processes = held_processes(prefix)
    owner.send_signal(signal.SIGINT)
    time.sleep(0.05)
    owner.send_signal(signal.SIGINT)
    owner.wait(20)
    assert_nothing_left(directory, prefix, processes)


def test_what_a_killed_owner_left_is_removed_and_what_runs_is_not(
    held: tuple[subprocess.Popen[str], Path, str],
) -> None:
    owner, directory, prefix = held
    processes = held_processes(prefix)
    assert str(directory) not in [record.directory for record in remove_abandoned()]
    assert directory.exists()
    owner.kill()
    owner.wait()
    wait_until(lambda: any(r.abandoned() for r in records() if r.prefix == prefix), "the record being abandoned")
    assert str(directory) in [record.directory for record in remove_abandoned()]
    assert_nothing_left(directory, prefix, processes)


def test_other_pods_of_the_seed_reach_the_seed_servers_but_nothing_of_the_shoot(make_lab: type[Lab]) -> None:
    lab = make_lab(seed_pods=2)
    one, other = lab.seed_pods
    for family in (4, 6):
        for address in (addresses.SEED[family], addresses.seed_pod(2)[family]):
            one.run(["ping", "-c1", "-W2", address])
        other.run(["ping", "-c1", "-W2", addresses.SEED[family]])
        for target in addresses.targets():
            done = one.run(["curl", "-gsS", "-m", "0.5", target.url(family)], check=False)
            assert done.returncode != 0, target
    assert lab.net.counter("refused") == 0, "the internet's firewall is for others"
