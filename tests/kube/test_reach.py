"""What people and kube-apiserver do with nodes, pods and services of a shoot, through the tunnel, in every wiring.

The tests of a wiring share one landscape and run in the order of this file: the aggregated API has to stay available all
the while, and the tunnel is closed at the end.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from lab import addresses
from lab.kube.kubectl import asked_twice, beside, port_forward
from lab.kube.landscape import REFUSAL_S, Landscape, Wiring
from lab.kube.shoot import API_SERVICE, NODE, POD, SERVICE, WEBHOOK_LABEL
from lab.processes import LabError, wait_until

pytestmark = [pytest.mark.kube, pytest.mark.timeout(420)]

LOG_LINES = 100_000
COPY_BYTES = 500_000_000
EXEC_STREAMS = 200
STORM = (1000, 50)
#: How long the aggregated API has to stay available, with all other tests' traffic beside it.
AVAILABLE_S = {Wiring.EGRESS_MTLS: 300.0}
AVAILABLE_DEFAULT_S = 60.0
#: A kubectl beside somebody who stops reading.
PROMPT_S = 3.0
#: No connection from before the outage is used after this time: from then on every refusal says why.
WORDS_S = 30.0
SERVICE_PROXY = f"/api/v1/namespaces/default/services/{SERVICE}:http/proxy/"
POD_PROXY = f"/api/v1/namespaces/default/pods/{POD}:{addresses.HTTP_PORT}/proxy/"
GREETING = "/apis/lab.rhizome.test/v1/greetings/hello"
NODE_PROXY = f"/api/v1/nodes/{NODE}/proxy/healthz"

#: Answers once the client has said all that it has to say.
LATE_ANSWER = """
import socket, time
listener = socket.create_server(("127.0.0.1", 9999))
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    got = b""
    while data := connection.recv(65536):
        got += data
    time.sleep(1)
    connection.sendall(b"late answer to %d bytes" % len(got))
    connection.close()
"""

SAY_AND_SHUT = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(b"x" * 100_000)
connection.shutdown(socket.SHUT_WR)
answer = b""
while data := connection.recv(65536):
    answer += data
print(answer.decode())
"""


def config_map(name: str, allowed: str) -> str:
    metadata = {"name": name, "labels": WEBHOOK_LABEL}
    return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"allowed": allowed}})


def test_100_000_log_lines_arrive_complete_and_in_order(landscape: Landscape) -> None:
    text = "".join(f"{number:06d} a line that a program wrote, with some words in it\n" for number in range(LOG_LINES))
    landscape.shoot.write_log(text)
    assert landscape.plane.kubectl("logs", POD) == text
    assert landscape.plane.kubectl("logs", POD, "--tail=2").splitlines() == text.splitlines()[-2:]


def test_logs_follow_what_is_written(landscape: Landscape) -> None:
    with beside(landscape.plane, "logs", "--follow", "--tail=0", POD) as following:
        assert following.stdout is not None
        time.sleep(1)  # until it is connected, or the line would be from before
        landscape.shoot.write_log("something new\n")
        assert following.stdout.readline() == b"something new\n"


def test_exec_carries_all_three_streams_and_the_exit_code(landscape: Landscape) -> None:
    script = "cat; echo to the other one >&2; exit 7"
    done = landscape.plane.run_kubectl("exec", "--stdin", POD, "--", "sh", "-c", script, stdin="in, and out again\n")
    assert done.stdout == "in, and out again\n"
    assert done.stderr.splitlines()[0] == "to the other one"
    assert done.returncode == 7
    where = landscape.plane.kubectl("exec", POD, "--", "ip", "-brief", "address")
    assert addresses.pod(1).v4 in where, "it ran in the pod"


def test_a_late_answer_arrives_after_the_input_has_ended(landscape: Landscape) -> None:
    script = "sha256sum; sleep 1; echo late"
    text = "x" * 1_000_000
    out = landscape.plane.kubectl("exec", "--stdin", POD, "--", "sh", "-c", script, stdin=text)
    assert out.split() == [hashlib.sha256(text.encode()).hexdigest(), "-", "late"]


def test_port_forward_and_a_late_answer_after_half_close(landscape: Landscape) -> None:
    inside, pod = landscape.control_plane, landscape.lab.pod
    late = pod.spawn([sys.executable, "-I", "-S", "-c", LATE_ANSWER], name="late")
    late.wait_for_output("ready")
    with (
        port_forward(landscape.plane, POD, 18080, addresses.HTTP_PORT),
        port_forward(landscape.plane, POD, 19999, 9999),
    ):
        page = json.loads(inside.run(["curl", "-sS", "http://127.0.0.1:18080/"]).stdout)
        assert page["machine"] == "pod1"
        said = inside.run([sys.executable, "-I", "-S", "-c", SAY_AND_SHUT, "19999"]).stdout
    late.stop()
    assert said.strip() == "late answer to 100000 bytes"


def test_nodes_pods_and_services_by_proxy(landscape: Landscape) -> None:
    assert landscape.plane.kubectl("get", "--raw", NODE_PROXY) == "ok"
    for path in (POD_PROXY, SERVICE_PROXY):
        assert json.loads(landscape.plane.kubectl("get", "--raw", path))["machine"] == "pod1"


def test_others_than_kube_apiserver_get_through_too(landscape: Landscape) -> None:
    """As docs/migrating.md says to try it."""
    egress, url = landscape.egress, addresses.targets()[0].url()
    if egress is None:
        for target in addresses.targets():
            page = json.loads(landscape.control_plane.run(["curl", "-sS", target.url()]).stdout)
            assert page["machine"] == ("node1" if target.name == "node" else "pod1")
        return
    if landscape.wiring is Wiring.EGRESS_UDS:
        head = f"CONNECT {addresses.node(1)}:{addresses.HTTP_PORT} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(egress.uds))
            client.sendall(head.encode())
            assert client.recv(1000) == b"HTTP/1.1 200 OK\r\n\r\n"
        return
    proxy = ["-x", egress.url, "--proxy-cacert", str(egress.ca), "--proxytunnel"]
    files = ["--proxy-cert", str(egress.client.certificate), "--proxy-key", str(egress.client.key)]
    page = json.loads(landscape.control_plane.run(["curl", "-sS", *proxy, *files, url]).stdout)
    assert page["machine"] == "node1"
    without = landscape.control_plane.run(["curl", "-sS", *proxy, url], check=False)
    assert without.returncode != 0, "without a certificate there is no way in"


def test_a_webhook_in_the_shoot_decides(landscape: Landscape) -> None:
    landscape.plane.kubectl("create", "--filename=-", stdin=config_map("good", "yes"))
    landscape.plane.kubectl("delete", "configmap", "good")
    refused = landscape.plane.kubectl("create", "--filename=-", stdin=config_map("bad", "no"), check=False)
    assert "denied the request: the webhook in the shoot says no" in refused


def test_a_storm_of_webhooks(landscape: Landscape, measured: Callable[[str], None]) -> None:
    report = landscape.load("webhooks", *STORM)
    assert report["wrong"] == []
    measured(
        f"{STORM[0]} webhook requests, {STORM[1]} at once: "
        f"p50 {report['p50_s'] * 1e3:.0f} ms, p99 {report['p99_s'] * 1e3:.0f} ms"
    )
    assert report["p99_s"] < 5, "webhooks give up after 10 s by default"


def test_the_aggregated_api_answers_with_the_users_name(landscape: Landscape) -> None:
    greeting = json.loads(landscape.plane.kubectl("get", "greetings", "hello", "--output=json"))
    assert greeting["spec"]["text"] == "hello admin, from the shoot"


def test_many_exec_streams_at_once(landscape: Landscape, measured: Callable[[str], None]) -> None:
    report = landscape.load("execs", EXEC_STREAMS, 65536)
    assert report["wrong"] == []
    assert report["most_open"] == EXEC_STREAMS
    measured(f"{EXEC_STREAMS} exec streams at once, 64 KiB through each and back: {report['seconds']:.1f} s")


def test_a_large_copy_is_intact_both_ways(landscape: Landscape, measured: Callable[[str], None]) -> None:
    source, back = landscape.lab.directory / "source", landscape.lab.directory / "back"
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for index in range(COPY_BYTES // 1_000_000):
            # Different everywhere, so that a block lost, doubled or moved changes the digest.
            block = hashlib.shake_256(index.to_bytes(4, "big")).digest(1000) * 1000
            file.write(block)
            digest.update(block)

    def copy(way: str, *words: str) -> str:
        start = time.monotonic()
        try:
            landscape.plane.kubectl("cp", *words, timeout_s=180)
        except LabError as exc:
            return str(exc)
        measured(f"kubectl cp {way} a pod: {COPY_BYTES / (time.monotonic() - start) / 1e6:.0f} MB/s")
        if way == "to":
            found = landscape.plane.kubectl("exec", POD, "--", "sha256sum", "/run/copy").split()[0]
        else:
            with back.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        return "" if found == digest.hexdigest() else f"{way} a pod: {found} is not {digest.hexdigest()}"

    asked_twice(landscape, lambda: copy("to", str(source), f"{POD}:/run/copy"), measured)
    asked_twice(landscape, lambda: copy("from", f"{POD}:/run/copy", str(back)), measured)
    for path in (source, back):
        path.unlink()
    landscape.plane.kubectl("exec", POD, "--", "rm", "/run/copy")


def prompt(landscape: Landscape) -> float:
    """The slowest of some short commands, in seconds."""
    taken = []
    for _ in range(5):
        start = time.monotonic()
        assert landscape.plane.kubectl("exec", POD, "--", "echo", "here") == "here\n"
        assert landscape.plane.kubectl("get", "--raw", SERVICE_PROXY)
        taken.append(time.monotonic() - start)
    return max(taken)


def test_a_client_that_stops_reading_slows_nobody_else(landscape: Landscape, measured: Callable[[str], None]) -> None:
    alone = prompt(landscape)
    with beside(landscape.plane, "exec", POD, "--", "cat", "/dev/zero") as stuck:
        assert stuck.stdout is not None
        stuck.stdout.read(1_000_000)
        time.sleep(5)  # all buffers on the way are full by now
        meanwhile = prompt(landscape)
        assert stuck.poll() is None
    measured(f"kubectl beside a client that does not read: {meanwhile * 1e3:.0f} ms, alone {alone * 1e3:.0f} ms")
    assert meanwhile < PROMPT_S


def test_a_target_that_stops_reading_slows_nobody_else(landscape: Landscape, measured: Callable[[str], None]) -> None:
    with beside(landscape.plane, "exec", "--stdin", POD, "--", "sleep", "60") as stuck:
        assert stuck.stdin is not None
        sent = 0

        def fill() -> None:
            nonlocal sent
            try:
                while stuck.stdin is not None:
                    sent += stuck.stdin.write(bytes(1 << 16))
            except (OSError, ValueError):
                pass  # it was killed

        filling = threading.Thread(target=fill, daemon=True)
        filling.start()
        time.sleep(5)
        before = sent
        meanwhile = prompt(landscape)
        assert sent == before, "the target still read"
        assert stuck.poll() is None
        stuck.kill()
        filling.join(5)
    measured(f"kubectl beside a target that does not read: {meanwhile * 1e3:.0f} ms")
    assert meanwhile < PROMPT_S


def test_the_aggregated_api_has_been_available_all_the_while(
    landscape: Landscape, measured: Callable[[str], None]
) -> None:
    wanted_s = AVAILABLE_S.get(landscape.wiring, AVAILABLE_DEFAULT_S)
    answers = 0
    while True:
        condition = landscape.available()
        assert condition["status"] == "True", condition
        # kube-apiserver itself writes down when this last changed, so nothing is missed between two looks.
        since = datetime.fromisoformat(condition["lastTransitionTime"]).timestamp()
        available_s = time.time() - since
        if available_s >= wanted_s:
            break
        for _ in range(20):
            landscape.plane.kubectl("get", "greetings", "hello")
            landscape.plane.kubectl("exec", POD, "--", "true")
            answers += 1
            time.sleep(0.3)
    measured(f"the aggregated API: available for {available_s:.0f} s without a change, {answers} requests at the end")


def refusal(landscape: Landscape, *words: str, stdin: str | None = None) -> tuple[str, float]:
    """What a kubectl that must fail says, and after how many seconds. Requests that kube-apiserver sends on connections
    from before the outage may end without words; but they end, and so do those connections."""
    slowest = 0.0
    give_up = time.monotonic() + WORDS_S
    while time.monotonic() < give_up:
        start = time.monotonic()
        done = landscape.plane.run_kubectl(*words, stdin=stdin)
        slowest = max(slowest, time.monotonic() - start)
        assert done.returncode != 0, f"kubectl {' '.join(words)} reached the shoot: {done.stdout}"
        if says_why(landscape, done.stderr):
            break
    return done.stderr, slowest


def says_why(landscape: Landscape, text: str) -> bool:
    return any(words in text for words in landscape.wiring.down_words)


def everything(landscape: Landscape) -> dict[str, tuple[str, float]]:
    """All that needs the tunnel and says to kubectl why it fails, when there is none."""
    return {
        "logs": refusal(landscape, "logs", POD, "--tail=1"),
        "webhook": refusal(landscape, "create", "--filename=-", stdin=config_map("new", "yes")),
        "exec": refusal(landscape, "exec", POD, "--", "true"),
        "node proxy": refusal(landscape, "get", "--raw", NODE_PROXY),
        "pod proxy": refusal(landscape, "get", "--raw", POD_PROXY),
        "service proxy": refusal(landscape, "get", "--raw", SERVICE_PROXY),
    }


def works(landscape: Landscape) -> bool:
    try:
        landscape.plane.kubectl("exec", POD, "--", "true")
        landscape.plane.kubectl("get", "--raw", SERVICE_PROXY)
    except LabError:
        return False
    return True


def test_a_frozen_shoot_client_makes_kubectl_fail_soon_with_the_cause(
    landscape: Landscape, measured: Callable[[str], None]
) -> None:
    with landscape.frozen_client():
        first_s = time.monotonic()
        assert landscape.plane.run_kubectl("exec", POD, "--", "true").returncode != 0
        first_s = time.monotonic() - first_s
        wait_until(lambda: not landscape.server.ready(), "the seed server noticing", 20, 0.1)
        then, then_s = refusal(landscape, "exec", POD, "--", "true")
    assert first_s < REFUSAL_S
    assert then_s < (REFUSAL_S if landscape.egress is None else 2), then
    assert says_why(landscape, then), then
    wait_until(lambda: works(landscape), "kubectl working again", 20, 0.2)
    measured(f"frozen shoot client: kubectl fails after {first_s:.1f} s, then after {then_s:.1f} s: {then.strip()}")


def test_without_the_tunnel_everything_fails_with_the_reason_and_with_it_works_again(
    landscape: Landscape, measured: Callable[[str], None]
) -> None:
    breaks = landscape.breaks()
    landscape.close_tunnel()
    try:
        said = everything(landscape)
        assert landscape.breaks() > breaks
        wait_until(lambda: landscape.available()["status"] == "False", "the aggregated API being unavailable", 60, 0.5)
        # Who asks for such an object is told no more by kube-apiserver than that; the cause is in the APIService.
        assert "unable to handle the request" in landscape.plane.kubectl("get", "--raw", GREETING, check=False)
        # A question that was on its way when the tunnel closed ended with its time limit.
        wait_until(
            lambda: says_why(landscape, landscape.available()["message"]), "the cause in the APIService", 60, 0.5
        )
    finally:
        start = time.monotonic()
        landscape.open_tunnel()
    wait_until(lambda: works(landscape), "kubectl working again", 10, 0.1)
    again_s = time.monotonic() - start
    for what, (words, seconds) in said.items():
        assert says_why(landscape, words), f"{what}: {words}"
        assert seconds < REFUSAL_S, f"{what}: {seconds:.1f} s"
    service, pod = f"{addresses.SERVICE}:443", f"{addresses.pod(1)}:{addresses.HTTPS_PORT}"
    if landscape.egress is not None:
        assert f"while dialing {pod if landscape.wiring.routes_to_endpoints else service}" in said["webhook"][0]
    wait_until(lambda: landscape.available()["status"] == "True", f"{API_SERVICE} being available", 60, 0.5)
    measured(f"no tunnel: {said['logs'][0].strip()}")
    measured(f"kubectl works {again_s:.1f} s after the shoot client was started again")


def test_nothing_of_the_shoot_is_reachable_beside_the_tunnel(landscape: Landscape) -> None:
    has_routes = landscape.egress is None
    if has_routes:
        landscape.close_tunnel()
    try:
        reached = [
            target.url()
            for target in addresses.targets()
            if landscape.control_plane.run(["curl", "-sS", "-m", "1", target.url()], check=False).returncode == 0
        ]
    finally:
        if has_routes:
            landscape.open_tunnel()
    assert reached == []


def test_every_key_is_readable_by_its_owner_alone(landscape: Landscape) -> None:
    keys = [path for path in Path(landscape.lab.directory).rglob("*.key") if path.is_file()]
    assert keys
    assert [path for path in keys if path.stat().st_mode & 0o077] == []
