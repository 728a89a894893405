"""`python -m lab`: the demo, and what remains of it with --keep."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from lab import addresses
from lab.addresses import Family
from lab.daemons import program
from lab.demo import Demo, show
from lab.front import KINDS
from lab.kube.demo import KubeDemo
from lab.kube.demo import show as show_kube
from lab.kube.landscape import Landscape, Wiring
from lab.lab import Lab
from lab.processes import LabError
from lab.records import Record, records, remove_abandoned


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="show the main job and check every claim; exit code 0 only if it all works")
    demo.add_argument("--proxy", choices=[*KINDS, "none"], default="envoy-sni", help="what the shoot dials out through")
    demo.add_argument("--underlay", type=int, choices=(4, 6), default=4, help="IP version between shoot and seed")
    demo.add_argument("--keep", action="store_true", help="leave it running, to look at")
    demo.set_defaults(run=_demo)
    kube = commands.add_parser(
        "demo-kube", help="show a real kube-apiserver using the tunnel, with kubectl; same exit code"
    )
    kube.add_argument(
        "--wiring", choices=[w.value for w in Wiring], default=Wiring.EGRESS_MTLS.value, help="into the tunnel by what"
    )
    kube.set_defaults(run=_demo_kube)
    down = commands.add_parser("down", help="remove what `demo --keep` left, and what killed runs left")
    down.set_defaults(run=_down)
    inside = commands.add_parser("exec", help="run a command on a machine of the lab that was kept")
    inside.add_argument("machine", help="seed, net, nat, node or pod")
    inside.add_argument("command", nargs=argparse.REMAINDER)
    inside.set_defaults(run=_exec)
    arguments = parser.parse_args()
    console = Console(highlight=False)
    try:
        code: int = arguments.run(arguments, console)
    except LabError as exc:
        console.print(f"\n[bold red]It does not work.[/] {escape(str(exc))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped; everything is removed")
        return 130
    return code


def _demo(arguments: argparse.Namespace, console: Console) -> int:
    _end_politely()
    family: Family = arguments.underlay
    lab = Lab(arguments.proxy, underlay=family)
    try:
        found = Demo(lab, console).run()
        show(found, console)
        if arguments.keep:
            _explain(lab.keep(), console)
    finally:
        lab.down()
    return 0 if found.works else 1


def _demo_kube(arguments: argparse.Namespace, console: Console) -> int:
    _end_politely()
    landscape = Landscape(Wiring(arguments.wiring))
    try:
        checks = KubeDemo(landscape, console).run()
    finally:
        landscape.down()
    return 0 if show_kube(checks, console) else 1


def _end_politely() -> None:
    """SIGTERM and SIGHUP do what Ctrl-C does: everything is removed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt


def _explain(record: Record, console: Console) -> None:
    inside = ".venv/bin/python -m lab exec"
    pod, service = addresses.targets()[1:]
    console.print(
        f"""
It is left running. Each machine is a network namespace: {" ".join(record.namespaces)}
Look at it, from this directory:
  {inside} seed rhizome-agent status
  {inside} node rhizome-agent status
  {inside} seed curl {pod.url()}
  ip netns exec {record.prefix}seed curl {service.url()}
  ip netns exec {record.prefix}nat tcpdump -ni wan0
Logs and configuration: {record.directory}/seed and {record.directory}/node1
Remove it:
  make down""",
        markup=False,
        soft_wrap=True,
    )


def _down(_: argparse.Namespace, console: Console) -> int:
    removed = remove_abandoned()
    for record in removed:
        console.print(f"removed {', '.join(record.namespaces)} and {record.directory}", markup=False, soft_wrap=True)
    if not removed:
        console.print("there is nothing to remove")
    return 0


def _exec(arguments: argparse.Namespace, _: Console) -> int:
    kept = [record for record in records() if record.kept]
    if not kept:
        raise LabError("no lab was kept; start one with `make demo KEEP=1`")
    try:
        pause = kept[-1].pause(arguments.machine)
    except KeyError:
        raise LabError(f"there is no machine {arguments.machine!r}: use seed, net, nat, node or pod") from None
    words = arguments.command or ["bash"]
    if Path(program(words[0])).exists():
        words = [program(words[0]), *words[1:]]
    os.execvp("nsenter", ["nsenter", f"--net=/proc/{pause}/ns/net", f"--mount=/proc/{pause}/ns/mnt", "--", *words])


if __name__ == "__main__":
    sys.exit(main())
