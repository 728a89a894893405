"""The interval index answers as a comparison of everything with everything would."""

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from agent.identity import Identity, Role
from agent.model import IPNetwork, networks
from seed_server.claims import Claims

A, B = Identity("cp", Role.SHOOT_CLIENT, "a"), Identity("cp", Role.SHOOT_CLIENT, "b")
PREFIX = st.builds(
    lambda i, n: ip_network((0x0A000000 + (i << (32 - n)) % 256, n), strict=False),
    st.integers(0, 255),
    st.integers(24, 32),
)


@given(st.lists(st.tuples(PREFIX, st.sampled_from([A, B])), max_size=12), PREFIX)
def test_agrees_with_the_obvious_search(wanted: list[tuple[IPNetwork, Identity]], probe: IPNetwork) -> None:
    held: dict[Identity, list[IPNetwork]] = {A: [], B: []}
    claims = Claims()
    for prefix, holder in wanted:
        other = B if holder is A else A
        clash = any(prefix.overlaps(p) for p in held[other])
        assert (claims.overlap(prefix, holder) is not None) == clash
        if not clash:
            held[holder].append(prefix)
            claims = claims.replace(holder, held[holder])
    assert (claims.overlap(probe, A) is not None) == any(probe.overlaps(p) for p in held[B])


def test_families_do_not_mix_and_leaving_frees() -> None:
    claims = Claims().replace(A, networks(["10.0.0.0/8", "fd00::/16"]))
    assert claims.overlap(ip_network("::a00:0/104"), B) is None
    assert claims.overlap(ip_network("fd00:1::/64"), B) == (ip_network("fd00::/16"), A)
    assert claims.replace(A, ()).overlap(ip_network("10.1.0.0/16"), B) is None
