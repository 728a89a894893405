"""The settings that every role has: both roles have them, and only their defaults may differ."""

from __future__ import annotations

import pytest

import seed_server.settings
import shoot_client.settings
from agent.role_settings import RoleSettings
from agent.settings import specs


@pytest.mark.parametrize("role", [seed_server.settings.Settings, shoot_client.settings.Settings])
def test_a_role_overrides_defaults_and_help_but_no_meaning(role: type[RoleSettings]) -> None:
    own = {spec.name: spec for spec in specs(role)}
    for spec in specs(RoleSettings):
        assert (own[spec.name].kind, own[spec.name].group, own[spec.name].many) == (spec.kind, spec.group, spec.many)


def test_both_roles_can_live_in_one_network_namespace() -> None:
    for name in ("ifname", "wireguard_port", "health_listen"):
        defaults = {next(s.default for s in specs(role) if s.name == name) for role in (seed_server.settings.Settings, shoot_client.settings.Settings)}  # fmt: skip
        assert len(defaults) == 2, name
