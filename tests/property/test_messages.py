"""Any text is a message or a BadMessage; any grant survives the wire."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.errors import BadMessage
from agent.messages import encode, parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["versions", "software", "public_keys", "offer", "version", "epoch", "addresses", "servers", "tunnel_networks", "carries",
     "refused", "mtu", "keepalive_s", "lifetime_s", "direct", "public_key", "routes", "preshared_key", "reason", "text", "retry_after_s", "path", "health", "once", "silence_s", "credential"]
)  # fmt: skip
TYPE = st.sampled_from(["enroll", "grant", "refuse", "facts", "drain", "else"])


def value_or_bad(text: str) -> None:
    said = ""
    try:
        message = parse(text)
    except BadMessage as exc:
        said = str(exc)
    else:
        assert parse(encode(message)) == message
    assert len(said) < 300


@given(st.text(max_size=200))
def test_text(text: str) -> None:
    value_or_bad(text)


@given(TYPE, st.dictionaries(FIELDS, JSON, max_size=8))
def test_json_of_the_right_shape_with_wrong_contents(kind: str, fields: dict[str, Any]) -> None:
    value_or_bad(json.dumps({"type": kind, **fields}))
