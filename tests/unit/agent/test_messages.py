"""The control vocabulary: what is written is read back, and nothing from the network raises anything but BadMessage."""

import json
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from agent.errors import BadMessage
from agent.messages import (
    MESSAGE_MAX_BYTES,
    Credential,
    Direct,
    Drain,
    Enroll,
    Facts,
    Grant,
    Message,
    Offer,
    Refuse,
    Unknown,
    encode,
    parse,
)
from agent.model import Endpoint, PresharedKey, PublicKey, networks

KEYS = (("stream", PublicKey(bytes(range(32)))),)
OFFER = Offer(networks(["10.250.0.2/32"]), networks(["100.96.1.0/24", "fd00::/64"]), networks(["100.64.0.0/13"]))
GRANT = Grant(
    version=1,
    epoch="8f3a",
    public_keys=KEYS,
    addresses=(ip_address("192.168.128.2"), ip_address("fd8f:6d53:b97a:1::2")),
    servers=(ip_address("192.168.128.1"),),
    tunnel_networks=networks(["192.168.128.0/17"]),
    carries=networks(["10.250.0.2/32"]),
    refused=(("0.0.0.0/0", "0.0.0.0/0 is a default route"),),
    mtu_bytes=1420,
    persistent_keepalive_s=20,
    lifetime_s=3600.0,
    routes=networks(["10.250.0.0/16"]),
    direct=Direct(
        PublicKey(b"d" * 32),
        "e2",
        (ip_address("192.168.128.2"),),
        (Endpoint(ip_address("192.0.2.1"), 51821),),
        PresharedKey(b"q" * 32),
    ),
    preshared_key=PresharedKey(b"k" * 32),
)


CREDENTIAL = Credential("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl", "0a" * 32)


@pytest.mark.parametrize(
    "message",
    [
        Enroll(KEYS, OFFER, software="rhizome 0.1.0", path="direct"),
        Enroll(KEYS, OFFER, once=True),
        Enroll(KEYS, OFFER, standby=True),
        replace(GRANT, target="wg-0a1b2c3d", successor="wg-4e5f6071"),
        Facts(OFFER, "stream", standby=True),
        GRANT,
        replace(GRANT, silence_s=600.0),
        replace(GRANT, credential=CREDENTIAL),
        Refuse("version", "too old", None),
        Refuse("busy", "later", 3.5),
        Facts(OFFER, "stream", "ok"),
        Drain("upgrade"),
        Unknown("later-invention"),
    ],
)
def test_what_is_written_is_read_back(message: Message) -> None:
    assert parse(encode(message)) == message


def test_unknown_fields_of_a_newer_peer_are_ignored() -> None:
    body = json.loads(encode(GRANT))
    body["colour"] = {"deep": [1, 2, 3]}
    assert parse(json.dumps(body)) == GRANT


def test_an_unknown_mandatory_version_can_still_be_refused_in_words() -> None:
    body = {"type": "enroll", "versions": [2, 3], "software": "rhizome 9", "public_keys": "in a shape we do not know"}
    message = parse(json.dumps(body))
    assert isinstance(message, Enroll) and (message.version_min, message.version_max) == (2, 3)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"versions": [2, 1]}, "versions"),
        ({"versions": "1"}, "versions"),
        ({"public_keys": {}}, "public_keys"),
        ({"public_keys": {"stream": "short"}}, "public_keys"),
        ({"public_keys": {"stream": 7}}, "public_keys"),
        ({"offer": {"nodes": ["10.250.0.1/16"]}}, "nodes"),
        ({"offer": {"pods": ["10.250.0.1/33"]}}, "pods"),
        ({"offer": {"pods": [None]}}, "pods"),
        ({"offer": {"pods": [2130706432]}}, "pods"),
        ({"offer": {"services": ["fe80::1%eth0/128"]}}, "services"),
        ({"offer": {"nodes": ["10.0.0.0/32"] * 1025}}, "nodes"),
        ({"offer": []}, "offer"),
        ({"software": 1}, "software"),
        ({"once": 1}, "once"),
        ({"once": None}, "once"),
        ({"standby": "yes"}, "standby"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], word: str) -> None:
    body = json.loads(encode(Enroll(KEYS, OFFER))) | change
    with pytest.raises(BadMessage, match=word):
        parse(json.dumps(body))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"mtu": 100},
        {"mtu": True},
        {"keepalive_s": -1},
        {"lifetime_s": 3601},
        {"lifetime_s": "1"},
        {"addresses": ["fe80::1%lo"]},
        {"direct": 1},
        {"direct": {}},
        {"direct": {"public_key": "x"}},
        {"direct": {"public_key": str(PublicKey(b"d" * 32)), "endpoints": [["192.0.2.1"]]}},
        {"direct": {"public_key": str(PublicKey(b"d" * 32)), "endpoints": [["192.0.2.1", 0]]}},
        {"preshared_key": "short"},
        {"refused": [["only one"]]},
        {"silence_s": -1},
        {"silence_s": "600"},
        {"credential": "eyJ.a.b"},
        {"credential": {"token": "eyJ.a.b"}},
        {"credential": {"token": "eyJ.a.b", "replaces": "0" * 63}},
        {"credential": {"token": "eyJ.a", "replaces": "0" * 64}},
        {"credential": {"token": "eyJ.a.b\nx", "replaces": "0" * 64}},
        {"credential": {"token": "eyJ.a." + "b" * 2049, "replaces": "0" * 64}},
    ],
)
def test_a_grant_that_breaks_the_rules_is_not_taken(change: dict[str, Any]) -> None:
    body = json.loads(encode(GRANT)) | change
    with pytest.raises(BadMessage):
        parse(json.dumps(body))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        '"x"',
        "[" * 60_000,
        '{"type":7}',
        '{"type":"enroll","versions":[1,1' + "0" * 5000 + "]}",
        "\udcff",
        "NaN",
    ],
)
def test_garbage_is_a_bad_message(text: str) -> None:
    with pytest.raises(BadMessage):
        parse(text)


def test_too_long_is_a_bad_message() -> None:
    with pytest.raises(BadMessage, match="longer"):
        parse('{"type":"drain","reason":"' + "x" * MESSAGE_MAX_BYTES + '"}')


def test_text_for_people_is_made_printable_and_short() -> None:
    message = parse(json.dumps({"type": "drain", "reason": "a\x1b[31m\n\ud800" + "x" * 1000}))
    assert isinstance(message, Drain)
    assert message.reason.isprintable() and len(message.reason) == 512


def test_the_preshared_key_shows_only_on_the_wire() -> None:
    secret = PresharedKey(b"k" * 32).reveal()
    assert secret in encode(GRANT)
    assert secret not in repr(GRANT) and secret not in str(GRANT)


def test_the_credential_shows_only_on_the_wire() -> None:
    grant = replace(GRANT, credential=CREDENTIAL)
    assert CREDENTIAL.token in encode(grant)
    assert CREDENTIAL.token not in repr(grant) and CREDENTIAL.token not in str(grant)


@pytest.mark.parametrize("field", ["target", "successor"])
@pytest.mark.parametrize("name", ["wg", "wg-0A1B2C3D", "wg-0a1b2c3d/22/", "../x", "127.0.0.1", 7])
def test_a_device_of_the_server_has_a_name_of_one_shape(field: str, name: object) -> None:
    """It becomes a part of a request's path."""
    with pytest.raises(BadMessage, match=field):
        parse(json.dumps(json.loads(encode(GRANT)) | {field: name}))
