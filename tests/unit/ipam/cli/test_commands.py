"""`rhizome-ipam`: every example in its help runs, every answer is also JSON, and what is wrong is told in words."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest

from agent.exits import Exit
from ipam.__main__ import COMMANDS, PROGRAM, main

ROOT = Path(__file__).parents[4]
NODE = "node/shoot-a/n1/uid-1"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Run(Protocol):
    def __call__(self, line: str, code: int = 0) -> str: ...


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(line: str, code: int = 0) -> str:
        got = main(shlex.split(line))
        captured = capsys.readouterr()
        assert got == code, captured.err
        return captured.out if code == 0 or captured.out else captured.err

    return call


def test_the_examples_run_in_the_order_in_which_they_are_shown(run: Run) -> None:
    for command in COMMANDS.values():
        for example in command.examples:
            program, *words = shlex.split(example)
            assert program == PROGRAM
            assert run(shlex.join(words))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples_and_exit_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    out = capsys.readouterr().out.replace("\\\n    ", "")
    assert COMMANDS[name].about in " ".join(out.split())
    assert all(example in out for example in COMMANDS[name].examples)
    assert all(code.meaning in out for code in Exit)


def test_a_life_of_an_address(run: Run) -> None:
    flags = "--store a.log --network 10.0.0.0/24"
    (given,) = json.loads(run(f"allocate {flags} {NODE} -o json"))
    assert given["addresses"] == ["10.0.0.8"]
    assert json.loads(run(f"allocate {flags} {NODE} -o json")) == [given]
    assert "n1         uid-1  held" in run(f"list {flags}").replace("n1    uid-1", "n1         uid-1")
    assert "10.0.0.8 is in use" in run(f"explain {flags} 10.0.0.8")
    assert "holds nothing; node shoot-a/n1 (uid-1) does and keeps it" in run(
        f"release {flags} node/shoot-a/n1/other", 1
    )
    assert "gave back 10.0.0.8" in run(f"release {flags} {NODE}")
    assert "holds nothing" in run(f"release {flags} node/x/y/z")
    known = json.loads(run(f"explain {flags} 10.0.0.8 -o json"))
    assert known["standing"] == "quarantined"
    assert [event["what"] for event in known["history"]] == ["given", "given back"]
    assert json.loads(run(f"list {flags} --kind other -o json"))["allocations"] == []
    (pool,) = json.loads(run(f"list {flags} -o json"))["pools"]
    assert (pool["size"], pool["quarantined"], pool["free"]) == (247, 1, 246)


def test_pools_by_name_by_label_and_out_of_one_another(run: Run) -> None:
    flags = "--store a.log --pools examples/pools.toml -o json"
    (eu,) = json.loads(run(f"allocate {flags} --label region=eu shoot/g/a/u"))
    assert eu["addresses"] == ["192.168.128.0/28"]
    (inner,) = json.loads(run(f"allocate {flags} --pool shoots-eu --out-of shoot/g/a/u {NODE}"))
    assert inner["addresses"] == ["192.168.128.1"]
    assert inner["parent"]["name"] == "a"
    assert json.loads(run(f"allocate {flags} --label region=eu shoot/g/a/u")) == [eu]
    error = run(f"allocate {flags} --label region=asia shoot/g/b/u", 1)
    assert "no pool fits" in error and "shoots-us  region is us; wanted region=asia" in error.replace("    ", "  ")
    assert "holds nothing; allocate a block" in run(f"allocate {flags} --pool shoots-eu --out-of x/y/z/u {NODE}2", 1)
    (three,) = json.loads(run(f"allocate {flags} shoot/g/c/u"))
    assert three["addresses"] == ["192.168.128.16/28", "192.168.192.0/28", "fd8f:6d53:b97a:1::8"]


def test_check_finds_leaks_orphans_and_the_unserved(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "--store a.log --network 10.0.0.0/28"
    for n in range(6):
        run(f"allocate {flags} node/a/n{n}/u")
    assert "no contradiction; 6 allocations" in run(f"check {flags}")
    (place / "living").write_text("".join(f"node/a/n{n}/u\n" for n in range(1, 7)))
    out = run(f"check {flags} --living living", 1)
    assert "2 problems" in out
    assert "leaked: node a/n0 (u) holds addresses and does not exist" in out
    assert "missing: node a/n6 (u) exists and holds nothing" in out
    out = run("check --store a.log --network 10.9.0.0/24")
    assert "orphans: 10.0.0.8 of node a/n0 (u) is in no pool" in out
    assert json.loads(run(f"check {flags} -o json"))["filling"] == ["pool 10.0.0.0/28 is 86% taken"]


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("allocate --store a.log x", 2, "names no owner: write KIND/NAMESPACE/NAME/UID"),
        (f"allocate --store a.log --network 10.0.0.1/24 {NODE}", 2, "host bits"),
        (
            f"allocate --store a.log --pools examples/pools.toml --network 10.0.0.0/8 {NODE}",
            2,
            "leave one of the two out",
        ),
        (
            f"allocate --store a.log --pools examples/pools.toml --pool x {NODE}",
            2,
            "there is no such pool; there are shoots-eu",
        ),
        (f"allocate --store a.log --length 30 {NODE}", 2, "only together with --out-of"),
        (f"allocate --store a.log --for -1 {NODE}", 2, "more than 0 seconds"),
        (f"allocate --store a.log --label x {NODE}", 2, "write key=value"),
        (f"allocate --store kubernetes:x {NODE}", 2, "has to be kubernetes:NAMESPACE/NAME"),
        (f"allocate --store missing/a.log {NODE}", 1, "is no directory; make it"),
        ("list --store a.log", 1, "there is no address ledger a.log; name it with --store"),
        ("watch --store a.log", 1, "there is no address ledger a.log; name it with --store"),
        ("check --store examples/pools.toml --living missing", 2, "--living missing: No such file or directory"),
        ("explain --store a.log 10.0.0.300", 2, "is no IP address"),
        ("plan missing.yaml", 2, "No such file"),
        ("plan examples/pools.toml", 2, "not YAML"),
        ("lsit", 2, "did you mean list?"),
    ],
)
def test_what_is_wrong_is_told(run: Run, line: str, code: int, words: str) -> None:
    assert words in run(line, code)


def test_every_problem_of_a_file_is_told_at_once(run: Run, place: Path) -> None:
    (place / "pools.toml").write_text(
        'quarantine_s = "x"\ncolour = 1\n[[pool]]\nname = "a"\nnetwork = "10.0.0.1/24"\norder = "random"\n'
        '[[pool]]\nname = "a"\nnetwork = "::ffff:0:0/96"\nlenght = 28\n[[pool]]\nnetwork = "10.0.0.0"\nlabels = { a = 1 }\n'
    )
    error = run(f"allocate --store a.log --pools pools.toml {NODE}", 2)
    for words in (
        "quarantine_s: has to be a number",
        "colour: no such field",
        "pool[0].network: 10.0.0.1/24 has host bits set: did you mean 10.0.0.0/24?",
        "pool[0].order: has to be lowest or next",
        "pool[1].name: 'a' is another pool's, too",
        "IPv4 addresses written as IPv6",
        "lenght: no such field; did you mean length?",
        "pool[2].name: is missing",
        "10.0.0.0/32 or the network",
        "pool[2].labels: has to be a table of texts",
    ):
        assert words in error
    assert "there is none; write a [[pool]]" in run(f"list --store a.log --pools {_empty(place)}", 2)


def _empty(place: Path) -> Path:
    (place / "empty.toml").write_text("")
    return place / "empty.toml"


def test_a_plan_that_cannot_work(run: Run, place: Path) -> None:
    (place / "plan.yaml").write_text(
        "seeds: [{name: s, pods: ['fd01::/48']}]\n"
        "shoots: [{name: a, seed: s, pods: ['fd01::/56']}, {name: b, seed: s, nodes: 10.0.0.0/16}]\n"
        "pools: [{name: t, network: 192.168.128.0/17, length: 28, planned: 3000}]\n"
        "inventory: [{name: v, capacity: 255, used: 255}]\nrequests: [{name: r}]\n"
    )
    out = run("plan plan.yaml", 1)
    assert out.startswith("1 direct, 0 mapped, 1 impossible of 2 pairs")
    assert "the fewest changes that help, 1:\n  pods fd01::/56 of a (shoots[0].pods[0]): take fd00::/56" in out
    assert "holds 2,048 blocks of 14 addresses; you plan 3,000: too few" in out
    assert "r (1, any): no pool fits" in out
    found = json.loads(run("plan plan.yaml -o json", 1))
    assert [pair["way"] for pair in found["pairs"]] == ["impossible", "direct"]
    assert found["changes"][0]["take"] == "fd00::/56"
    assert found["requests"] == [
        {"request": "r (1, any)", "chosen": None, "rejected": {"v": "255 of 255 in use, 0 free; wanted 1"}}
    ]


def test_a_plan_with_wrong_names(run: Run, place: Path) -> None:
    (place / "plan.yaml").write_text("seeds: [{name: s, parent: t}]\nshoots: [{seed: s, pods: [1]}, 7]\nx: 1\n")
    error = run("plan plan.yaml", 2)
    for words in ("s: its seed 't' is not in the plan", "shoots[0].name: is missing", "shoots[0].pods[0]: '1' is no network",
                  "shoots[1]: has to be a table", "x: no such field"):  # fmt: skip
        assert words in error


def test_watch_tells_changes(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ipam.cli.watch
    from ipam.stores.file import FileStore

    run(f"allocate --store a.log --network 10.0.0.0/24 {NODE}")
    original = FileStore.changed

    async def another(self: FileStore, version: Any) -> None:
        from ipam.allocate import allocate
        from ipam.model import Owner, Policy, Pool

        ledger, now = await self.read()
        policy = Policy((Pool.tunnel(__import__("ipaddress").ip_network("10.0.0.0/24")),))
        await FileStore(self._path).write(allocate(ledger, policy, Owner("k", "n", "other", "u"), 5.0)[0], now)
        await original(self, version)

    monkeypatch.setattr(ipam.stores.file.FileStore, "changed", another)
    lines = [json.loads(line) for line in run("watch --store a.log --count 1 -o json").splitlines()]
    assert lines[0] == {"what": "begins", "allocations": 1, "generation": 1}
    assert (lines[1]["what"], lines[1]["owner"]["name"], lines[1]["addresses"]) == ("held", "other", ["10.0.0.9"])


def test_neither_yaml_nor_kubernetes_is_loaded_for_a_file(place: Path) -> None:
    import subprocess

    code = (
        "import sys; from ipam.__main__ import main; main(sys.argv[1:]); "
        "print([m for m in ('yaml', 'lightkube', 'asyncio.sslproto') if m in sys.modules], file=sys.stderr)"
    )
    words = ["allocate", "--store", "a.log", NODE]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert "'yaml'" not in done.stderr and "'lightkube'" not in done.stderr
