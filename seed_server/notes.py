"""What the log and the audit log say of clients that are let in, and what one hears that is not."""

from __future__ import annotations

import logging

from agent.messages import Refuse
from seed_server.audit import Journal
from seed_server.registry import Client

#: What a client is told when its address cannot be kept. Why, is in our log alone: it names objects and accounts of the seed.
NOT_KEPT = Refuse("store", "the server cannot keep an address for you; its log says why", retry_after_s=5.0)


def note_grant(journal: Journal, client: Client, before: Client | None, stream: int, now: float) -> None:
    """`client` got its grant on this stream; `before` is what it was until then. `now` is monotonic."""
    identity, keys = client.identity, tuple(map(str, client.keys))
    if before is not None and before.keys != client.keys:
        words = f"{identity} came with other WireGuard keys"
        journal.note(logging.INFO, "key.changed", words, identity, public_keys=keys)
    journal.note(
        logging.DEBUG,
        "enroll.granted",
        f"{identity} is in",
        identity,
        stream=stream,
        public_keys=keys,
        addresses=tuple(map(str, client.addresses)),
        prefixes=tuple(map(str, client.own + client.shared + client.routes)),
        lifetime_s=round(client.expires_at - now),
        renewal=before is not None and before.stream == stream,
    )


def note_refused_prefixes(journal: Journal, client: Client, before: Client | None) -> None:
    """Which prefixes it offered in vain, once."""
    if before is not None and before.refused == client.refused:
        return
    for refusal in client.refused:
        words = f"{client.identity} may not carry {refusal.text}"
        prefix, reason = str(refusal.prefix), refusal.reason
        journal.note(logging.WARNING, "prefix.refused", words, client.identity, prefix=prefix, reason=reason)
