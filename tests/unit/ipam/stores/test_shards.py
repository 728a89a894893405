from ipam.ledger import Ledger
from ipam.model import UNCONFIRMED, Allocation, Owner, block_of
from ipam.stores.shards import Shard, advance, compose, home, places, rounds, with_claims, with_entries, without_entries
from ipam.usage import contradictions

COUNT = 3


def test_a_writer_that_died_while_it_cut_what_rested_into_other_pieces_leaves_no_contradiction() -> None:
    """Its entry is not there, and what it took is not given back: the claims of both are nobody's, and they overlap."""
    single, wide = block_of("10.0.0.4"), block_of("10.0.0.4/30")
    place = places(single, COUNT)[0]
    old, new, *_ = (o for o in (Owner("k", "ns", f"n{n}", "u") for n in range(20)) if home(o, COUNT) != place)
    before = Ledger.of([Allocation(old, (single,), 1, 0.0)], 1)
    after = Ledger.of([Allocation(new, (wide,), 2, 0.0)], 2)

    written = {n: Shard(n, COUNT) for n in range(COUNT)}
    first = rounds(Ledger(), before, COUNT)
    written |= {n: with_claims(written[n], claims) for n, claims in first.claim.items()}
    written |= {n: with_entries(written[n], entries, 1) for n, entries in first.put.items()}
    assert compose(written.values()).get(old) == before.get(old)

    second = rounds(before, after, COUNT)
    died = dict(written)
    died |= {n: without_entries(died[n], owners, 2) for n, owners in second.drop.items()}
    died |= {n: with_claims(died[n], claims) for n, claims in second.claim.items()}
    for ledger in (compose(died.values()), advance(before, written, died)):
        assert {block for a in ledger for block in a.blocks} == {single, wide}
        assert {a.owner.kind for a in ledger} == {UNCONFIRMED}
        assert contradictions(ledger) == []
