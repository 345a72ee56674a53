"""Tokens, keys, events and values, as the worker and the package for Node have them."""

import json

import pytest

from cachekeeper.errors import InvalidEvent, InvalidInput, InvalidKey, InvalidToken, Undecodable
from cachekeeper.events import check_event, fields_of, message_of
from cachekeeper.template import Template
from cachekeeper.tokens import Snapshot, Token
from cachekeeper.values import decode


def test_a_token_is_seen_by_later_snapshots_of_its_own_life_only(vectors):
    for case in vectors("tokens")["seen"]:
        seen = Token.parse(case["token"]).is_seen_at(case["incarnation"], Snapshot.parse(case["snapshot"]))
        assert seen == case["seen"], case


def test_what_is_no_token_is_refused(vectors):
    for text in vectors("tokens")["invalid"]:
        with pytest.raises(InvalidToken):
            Token.parse(text)


def test_keys_are_rendered_and_read_back_as_the_worker_does(vectors):
    given = vectors("keys")
    for case in given["keys"]:
        template = Template.parse(case["template"])
        assert list(template.columns) == case["columns"]
        if "key" in case:
            assert template.render(case["values"]) == case["key"]
            assert template.read(case["key"]) == case["values"], case
        else:
            with pytest.raises(InvalidKey):
                template.render(case["values"])
    for case in given["not_of"]:
        for key in case["keys"]:
            assert Template.parse(case["template"]).read(key) is None, (case, key)
    for text in given["invalid"]:
        with pytest.raises(InvalidKey):
            Template.parse(text)


def test_events_are_checked_before_they_are_sent(vectors):
    given = vectors("events")
    for case in given["valid"]:
        event = check_event(case["event"])
        assert json.loads(message_of(event)) == {name: value for name, value in case["event"].items() if value is not None}
        for name, text in fields_of(event).items():
            assert isinstance(text, str)
            if name in ("keys", "tags", "ids"):
                assert json.loads(text) == case["event"][name]
    for event in given["invalid"]:
        with pytest.raises(InvalidEvent):
            check_event(event)
    for event in ({"key": "a", "kay": "b"}, {"key": "a" * 10_241}, {"keys": ["a"] * 100_001}, {"key": "\ud800"}):
        with pytest.raises(InvalidEvent):
            check_event(event)
    with pytest.raises(InvalidEvent, match="bytes"):
        message_of(check_event({"keys": [f"{number:0>1000}" for number in range(1100)]}))


def test_values_of_every_format_are_read(vectors):
    given = vectors("values")
    for case in given["values"]:
        assert decode(bytes.fromhex(case["bytes"]), case["format"], "k") == case["value"]
    for case in given["integers"]:
        value = decode(bytes.fromhex(case["bytes"]), case["format"], "k")
        assert {name: str(value[name]) for name in case["integers"]} == case["integers"]
        assert str(value["d"][0]) == case["last"]
    for case in given["frames"]:
        again = case.get("repeats", {"plain": case.get("plain"), "times": 1})
        plain = bytes.fromhex(again["plain"]) * again["times"]
        frame = bytes.fromhex(case["frame"])
        assert decode(frame, "raw", "k") == plain, case["name"]
        assert decode(frame, "raw", "k", len(plain)) == plain, case["name"]
        if plain:
            with pytest.raises(Undecodable, match="larger than"):
                decode(frame, "raw", "k", len(plain) - 1)


def test_what_cannot_be_read_says_which_key(vectors):
    for case in vectors("values")["broken"]:
        with pytest.raises(Undecodable, match="the value of product:1 cannot be read") as caught:
            decode(bytes.fromhex(case["bytes"]), case["format"], "product:1")
        assert caught.value.key == "product:1" and not isinstance(caught.value, InvalidInput), case
