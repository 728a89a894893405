"""Strict reverse path filtering, and what two devices take then."""

import pytest

from agent import loose, sysctl


@pytest.mark.parametrize(
    ("all_", "default", "strict"),
    [("0", "0", False), ("0", "1", True), ("1", "0", True), ("1", "2", False), ("2", "1", False), (None, None, False)],
)
def test_the_higher_value_counts(
    monkeypatch: pytest.MonkeyPatch, all_: str | None, default: str | None, strict: bool
) -> None:
    found = {"net.ipv4.conf.all.rp_filter": all_, "net.ipv4.conf.default.rp_filter": default}
    monkeypatch.setattr(sysctl, "read", found.__getitem__)
    assert loose.is_strict() is strict


def test_what_cannot_be_changed_is_an_obstacle_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctl, "read", lambda _: "1")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "set it to 2 on the host" in loose.obstacle()
    monkeypatch.setattr("os.access", lambda *_: True)
    assert loose.obstacle() == ""


def test_only_our_own_devices_become_loose() -> None:
    assert loose.loose(["rz0", "rz.0"]) == {
        ("net.ipv4.conf.rz0.rp_filter", "2"),
        ("net.ipv4.conf.rz/0.rp_filter", "2"),
    }
