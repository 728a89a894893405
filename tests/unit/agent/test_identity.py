"""Names and identities: what parses is exactly what is written."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.identity import Identity, Role, dns_label, dns_name

LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=1, max_size=3).map(".".join)


@settings(deadline=None)
@given(LABEL, st.sampled_from(Role), NAME)
def test_what_is_written_is_read_back(control_plane: str, role: Role, name: str) -> None:
    identity = Identity(control_plane, role, "" if role is Role.SEED_SERVER else name)
    assert Identity.parse(str(identity)) == identity


@settings(deadline=None)
@given(
    st.one_of(
        st.text(), st.text().map(lambda tail: "spiffe://" + tail), st.text().map(lambda t: f"spiffe://a/sidecar/{t}")
    )
)
def test_any_text_is_an_identity_that_writes_itself_or_an_error(text: str) -> None:
    try:
        identity = Identity.parse(text)
    except ValueError:
        return
    assert str(identity) == text


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://a/seed-server/",
        "spiffe://a/seed-server/x",
        "spiffe://a/shoot-client",
        "spiffe://a/shoot-client/",
        "spiffe://a/shoot-client/x/y",
        "spiffe://a/admin",
        "spiffe://a",
        "spiffe:///seed-server",
        "spiffe://A/seed-server",
        "spiffe://a.b/seed-server",
        "spiffe://a/shoot-client/x\n",
        "SPIFFE://a/seed-server",
        "https://a/seed-server",
    ],
)
def test_near_misses_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Identity.parse(uri)


@pytest.mark.parametrize("text", ["", "-a", "a-", "A", "a_b", "ä", "a.b", "a" * 64, "a\n", "٣"])
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(ValueError, match="DNS label"):
        dns_label(text)


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "a" * 64 + ".b", ".".join(["a" * 63] * 4) + ".b"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="DNS"):
        dns_name(text)
