"""What every NetStack does with links, addresses, routes, rules and sysctls, said once."""

from __future__ import annotations

import errno
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network

import pytest

from agent.errors import ConfigError, HostError
from agent.host import (
    AddAddress,
    AddRoute,
    AddRule,
    DelAddress,
    DelRoute,
    DelRule,
    NetStack,
    NetStep,
    SetLink,
    SetSysctl,
)
from agent.model import LinkState, NetState, Route
from tests.contract.netstack.conftest import (
    ADDRESS4,
    ADDRESS6,
    ALIAS,
    FORWARD,
    RANGE4,
    RANGE6,
    World,
    device,
    link_of,
)


async def test_an_untouched_host_has_nothing_of_ours(world: World, net: NetStack) -> None:
    world.add_link("foreign", alias="somebody else's")
    world.add_link("nameless", alias="")
    assert await net.read(None) == NetState()


async def test_links_are_found_by_name_and_by_alias(world: World, net: NetStack) -> None:
    world.add_link("wg0")
    world.add_link("foreign", alias="somebody else's")
    assert [name for name, _ in (await net.read(None)).links] == ["wg0"]
    assert [name for name, _ in (await net.read(["wg0", "foreign", "absent", "wg0"])).links] == ["foreign", "wg0"]
    assert (await link_of(net, "foreign")).alias == "somebody else's"


async def test_a_link_is_set_in_one_step(world: World, net: NetStack) -> None:
    world.add_link("wg0", alias="")
    await net.apply([SetLink("wg0", mtu_bytes=1400, up=True, alias=ALIAS)])
    assert await link_of(net, "wg0") == LinkState(1400, True, ALIAS, frozenset())
    await net.apply([SetLink("wg0", up=False)])
    assert await link_of(net, "wg0") == LinkState(1400, False, ALIAS, frozenset())


async def test_addresses_come_and_go_twice_without_error(world: World, net: NetStack) -> None:
    world.add_link("wg0")
    add: list[NetStep] = [AddAddress("wg0", ADDRESS4), AddAddress("wg0", ADDRESS6)]
    delete: list[NetStep] = [DelAddress("wg0", ADDRESS4), DelAddress("wg0", ADDRESS6)]
    await net.apply([*add, *add])
    assert (await link_of(net, "wg0")).addresses == {ADDRESS4, ADDRESS6}
    await net.apply([*delete, *delete])
    assert (await link_of(net, "wg0")).addresses == frozenset()
    world.delete_link("wg0")
    await net.apply(delete)


async def test_an_address_gets_another_prefix_length(world: World, net: NetStack) -> None:
    world.add_link("wg0")
    await net.apply(
        [AddAddress("wg0", ip_interface("fd8f::2/64")), AddAddress("wg0", ip_interface("192.168.128.2/17"))]
    )
    await net.apply([AddAddress("wg0", ADDRESS6), DelAddress("wg0", ip_interface("fd8f::2/64"))])
    await net.apply([AddAddress("wg0", ADDRESS4), DelAddress("wg0", ip_interface("192.168.128.2/17"))])
    assert (await link_of(net, "wg0")).addresses == {ADDRESS4, ADDRESS6}


async def test_routes_come_change_and_go(world: World, net: NetStack) -> None:
    await device(world, net)
    await device(world, net, "wg1")
    routes = {
        Route(RANGE4, "wg0"),
        Route(RANGE4, "wg1", metric=50),
        Route(RANGE6, "wg0", source=ADDRESS6.ip),
        Route(RANGE6, "wg1", metric=50),
        Route(IPv4Network("0.0.0.0/0"), "wg0", source=ADDRESS4.ip),
        Route(IPv6Network("::/0"), "wg0"),
        Route(ip_network("10.2.3.4/32"), "wg0"),
    }
    await net.apply([AddRoute(route) for route in sorted(routes, key=str)] * 2)
    assert (await net.read(None)).routes == routes

    moved = {Route(RANGE4, "wg1", source=ADDRESS4.ip), Route(RANGE6, "wg1")}
    await net.apply([AddRoute(route) for route in moved])
    routes = {route for route in routes if route.dst not in (RANGE4, RANGE6) or route.metric} | moved
    assert (await net.read(None)).routes == routes

    await net.apply([DelRoute(route) for route in sorted(routes, key=str)] * 2)
    assert (await net.read(None)).routes == frozenset()


async def test_deleting_a_route_spares_the_one_that_took_its_place(world: World, net: NetStack) -> None:
    await device(world, net)
    await device(world, net, "wg1")
    await net.apply([AddRoute(Route(RANGE4, "wg1")), AddRoute(Route(RANGE6, "wg1"))])
    await net.apply([DelRoute(Route(RANGE4, "wg0")), DelRoute(Route(RANGE6, "wg0"))])
    assert (await net.read(None)).routes == {Route(RANGE4, "wg1"), Route(RANGE6, "wg1")}


async def test_a_thousand_routes_in_one_batch(world: World, net: NetStack) -> None:
    await device(world, net)
    routes = {Route(IPv4Network((0x0A000000 + (i << 8), 24)), "wg0", ADDRESS4.ip) for i in range(600)}
    routes |= {Route(IPv6Network(((0xFD01 << 112) + (i << 64), 64)), "wg0", ADDRESS6.ip) for i in range(600)}
    await net.apply([AddRoute(route) for route in routes])
    assert (await net.read(None)).routes == routes
    await net.apply([DelRoute(route) for route in routes])
    assert (await net.read(None)).routes == frozenset()


@pytest.mark.parametrize(
    ("route", "code"),
    [
        (Route(RANGE4, "absent"), errno.ENODEV),
        (Route(RANGE4, "asleep"), errno.ENETDOWN),
        (Route(RANGE4, "wg0", ip_address("203.0.113.1")), errno.EINVAL),
        (Route(RANGE6, "wg0", ip_address("2001:db8::1")), errno.EINVAL),
    ],
)
async def test_a_route_that_cannot_be_is_refused(world: World, net: NetStack, route: Route, code: int) -> None:
    await device(world, net)
    world.add_link("asleep")
    with pytest.raises(HostError) as caught:
        await net.apply([AddRoute(route)])
    assert caught.value.errno == code
    assert str(AddRoute(route)) in str(caught.value)


async def test_a_batch_stops_at_the_step_that_fails(world: World, net: NetStack) -> None:
    with pytest.raises(HostError) as caught:
        await net.apply([AddRule(4), AddRoute(Route(RANGE4, "absent")), AddRule(6)])
    assert caught.value.errno == errno.ENODEV
    assert (await net.read(None)).rules == {4}


async def test_addresses_and_links_need_their_device(net: NetStack) -> None:
    for step in (AddAddress("absent", ADDRESS4), SetLink("absent", up=True)):
        with pytest.raises(HostError) as caught:
            await net.apply([step])
        assert caught.value.errno == errno.ENODEV


async def test_a_link_that_goes_down_takes_its_routes_along(world: World, net: NetStack) -> None:
    await device(world, net)
    await net.apply([AddRoute(Route(RANGE4, "wg0")), AddRoute(Route(RANGE6, "wg0"))])
    world.down("wg0")
    state = await net.read(None)
    assert state.routes == frozenset()
    assert await link_of(net, "wg0") == LinkState(state.links[0][1].mtu_bytes, False, ALIAS, frozenset({ADDRESS4}))
    await net.apply([SetLink("wg0", up=True)])
    assert (await net.read(None)).routes == frozenset()


async def test_an_address_that_goes_takes_its_routes_or_their_source(world: World, net: NetStack) -> None:
    await device(world, net)
    await net.apply([AddRoute(Route(RANGE4, "wg0", ADDRESS4.ip)), AddRoute(Route(RANGE6, "wg0", ADDRESS6.ip))])
    await net.apply([DelAddress("wg0", ADDRESS4), DelAddress("wg0", ADDRESS6)])
    assert (await net.read(None)).routes == {Route(RANGE6, "wg0")}


async def test_a_device_that_goes_takes_everything_along(world: World, net: NetStack) -> None:
    await device(world, net)
    await net.apply([AddRoute(Route(RANGE4, "wg0")), AddRoute(Route(RANGE6, "wg0")), AddRule(4)])
    world.delete_link("wg0")
    assert await net.read(None) == NetState(rules=frozenset({4}))
    await net.apply([DelRoute(Route(RANGE4, "wg0"))])


async def test_rules_are_per_family_and_idempotent(net: NetStack) -> None:
    await net.apply([AddRule(4), AddRule(6), AddRule(4), AddRule(6)])
    assert (await net.read(None)).rules == {4, 6}
    await net.apply([DelRule(4), DelRule(4)])
    assert (await net.read(None)).rules == {6}
    await net.apply([DelRule(6)])
    assert (await net.read(None)).rules == frozenset()


async def test_sysctls_are_set_and_read(world: World, net: NetStack) -> None:
    world.add_link("wg.0")
    dotted = "net.ipv4.conf.wg/0.rp_filter"
    await net.apply([SetSysctl(FORWARD, "1"), SetSysctl(dotted, "2")])
    state = await net.read(None, [FORWARD, dotted, "net.ipv4.absent"])
    assert state.sysctls == {(FORWARD, "1"), (dotted, "2")}


async def test_a_sysctl_of_an_absent_device_or_of_the_whole_host_is_refused(net: NetStack) -> None:
    with pytest.raises(HostError) as caught:
        await net.apply([SetSysctl("net.ipv4.conf.absent.rp_filter", "2")])
    assert caught.value.errno == errno.ENOENT
    for key in ("kernel.panic", "net./..kernel.panic", "net"):
        with pytest.raises(ConfigError, match="sysctl"):
            await net.apply([SetSysctl(key, "1")])
