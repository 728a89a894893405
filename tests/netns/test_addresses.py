"""Who has which tunnel address outlives the seed server: real daemons, and the file that `ipam_file` names."""

from __future__ import annotations

import json

import pytest

from lab import addresses
from lab.daemons import program
from lab.ipam.replaced import come, given, go, used
from lab.lab import Lab

pytestmark = pytest.mark.netns


def test_a_new_seed_server_gives_every_client_the_address_it_had(make_lab: type[Lab]) -> None:
    """And every sidecar. They come back in the reverse order, on new devices. Without the file, the order would decide."""
    lab = make_lab("none", nodes=2, seed_pods=1)
    server = lab.seed_server(sidecar_ranges=["seed-pod-1=all"])
    clients = [lab.shoot_client(1), lab.sidecar(1), lab.shoot_client(2)]
    server.start()
    come(clients)
    before = given(server)
    assert len(before) == len(set(before.values())) == 3
    assert used(server) == dict.fromkeys(addresses.TUNNEL, 3.0)

    go([*clients, server])
    server.start()
    come(reversed(clients))
    assert given(server) == before
    assert used(server) == dict.fromkeys(addresses.TUNNEL, 3.0)
    shown = lab.seed.run([program("rhizome-ipam"), "list", "--store", str(server.settings["ipam_file"]), "-o", "json"])
    listed = {a["owner"]["name"]: tuple(a["addresses"]) for a in json.loads(shown.stdout)["allocations"]}
    assert listed == before

    go([*clients, server])
    server.settings["ipam_file"] = ""
    server.start()
    come(reversed(clients))
    assert given(server) != before
