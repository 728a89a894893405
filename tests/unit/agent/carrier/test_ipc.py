"""Every event and command survives the line; nothing else comes out of one."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.carrier import api, ipc
from agent.companion.lines import Displaced, Hello, encode
from agent.errors import BadMessage

TLS = api.TlsFiles("ca.crt", "client.crt", "client.key")
DIAL = api.DialConfig(
    "proxy.example",
    443,
    "seed.test",
    TLS,
    51820,
    proxies=(api.Proxy("p", 1, (("X-A", "b"),), credentials="me:hush"), api.Proxy("q", 2, credentials_file="/f")),
)
LISTEN = api.ListenConfig((("::", 8443), ("10.0.0.1", 443)), TLS, 51820, "shoot--a")

EVENTS = (
    Hello("abc", 1),
    Displaced(),
    api.Ready(4711, 1),
    api.Rejected("no"),
    api.Up(1, "spiffe://a/b", "192.0.2.1:3", "direct", 1, ('{"type":"grant"}', "x")),
    api.Message(1, 'a "text"\n\u2028\ud7ff\0'),
    api.Down(1, "eof", ""),
    api.DialFailed("tls", "words", 0.25),
    api.Presented(3, "token", "192.0.2.1:3"),
    api.Turned((("expired", 3),), "words"),
    api.Stats(1, 2, 3, 4, 5, (("codel", 6),), None, 0.5),
)
COMMANDS = (
    api.Configure(DIAL),
    api.Configure(LISTEN),
    api.Send(1, "{}"),
    api.Close(1, "refused", 60.0),
    api.Admit(3, "spiffe://a/b", 1.5),
    api.Turn(3, 401, "token_expired", "words"),
    api.Redial(),
    api.GetStats(),
    api.Stop(),
)


def test_the_examples_are_complete() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(ipc.FromCarrier))
    assert {type(command) for command in COMMANDS} == set(get_args(api.Command))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_survive_the_line(event: ipc.FromCarrier) -> None:
    line = encode(event)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert ipc.decode_event(line) == event


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_commands_survive_the_line(command: api.Command) -> None:
    assert ipc.decode_command(encode(command)) == command


def test_whole_numbers_become_seconds() -> None:
    line = b'{"close":{"stream":1,"reason":"x","retry_in_s":60}}'
    assert ipc.decode_command(line) == api.Close(1, "x", 60.0)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"stop":{},"redial":{}}',
        b'{"stop":[]}',
        b'{"stop":{"now":true}}',
        b'{"up":{}}',
        b'{"Stop":{}}',
        b'{"send":{"stream":1}}',
        b'{"send":{"stream":"1","text":""}}',
        b'{"send":{"stream":true,"text":""}}',
        b'{"send":{"stream":1,"text":null}}',
        b'{"close":{"stream":1,"reason":"","retry_in_s":NaN}}',
        b'{"close":{"stream":1,"reason":"","retry_in_s":true}}',
        b'{"close":{"stream":1,"reason":"","retry_in_s":1e999}}',
        b'{"close":{"stream":1,"reason":"","retry_in_s":1' + b"0" * 400 + b"}}",
        b'{"configure":{"config":null}}',
        b'{"configure":{"config":{"stop":{}}}}',
        b'{"close":{"stream":' + b"9" * 5000 + b',"reason":"","retry_in_s":0}}',
        b"[" * 100_000,
        encode(api.Configure(LISTEN)).replace(b'["10.0.0.1",443]', b'["10.0.0.1",443,1]'),
        encode(api.Configure(LISTEN)).replace(b'["10.0.0.1",443]', b'["10.0.0.1"]'),
    ],
)
def test_anything_else_is_a_bad_message(line: bytes) -> None:
    with pytest.raises(BadMessage):
        ipc.decode_command(line)


def test_an_error_repeats_nothing_of_the_line() -> None:
    line = encode(api.Configure(DIAL)).replace(b'"port":443', b'"port":"443"')
    with pytest.raises(BadMessage) as caught:
        ipc.decode_command(line)
    assert "hush" not in str(caught.value) and caught.value.__suppress_context__
    assert "dialconfig.port" in str(caught.value)


JSON: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 1.5, "", "x", [], [1], ["a", 1], {}, {"stop": {}}, {"tlsfiles": {"ca": 1}}]
)


def places(body: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    items = list(body.items()) if isinstance(body, dict) else list(enumerate(body)) if isinstance(body, list) else []
    return [(body, key) for key, _ in items] + [place for _, value in items for place in places(value)]


@given(st.sampled_from(COMMANDS), JSON, st.data())
def test_a_command_with_one_strange_value_is_a_command_or_a_bad_message(
    command: api.Command, strange: Any, data: st.DataObject
) -> None:
    body = json.loads(encode(command))
    container, key = data.draw(st.sampled_from(places(body)))
    container[key] = strange
    try:
        read = ipc.decode_command(json.dumps(body).encode())
    except BadMessage:
        return
    assert ipc.decode_command(encode(read)) == read


@given(st.sampled_from(COMMANDS), st.data())
def test_a_bent_line_is_a_command_or_a_bad_message(command: api.Command, data: st.DataObject) -> None:
    line = bytearray(encode(command))
    for _ in range(data.draw(st.integers(1, 3))):
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    try:
        ipc.decode_command(bytes(line))
    except BadMessage:
        pass


def test_the_build_names_this_code() -> None:
    assert len(ipc.build()) == 16 and ipc.build() == ipc.build()
