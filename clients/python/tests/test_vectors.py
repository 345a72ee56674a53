"""Tokens, keys, events and values, as the worker and the package for Node have them."""

import json

import pytest

from cachekeeper.cluster import ClusterMap, cluster_slot, guard_key, hash_tags, parse_cluster_slots, parse_guard
from cachekeeper.directory import Dataset, watermark_key
from cachekeeper.errors import InvalidEvent, InvalidInput, InvalidKey, InvalidToken, Undecodable
from cachekeeper.events import check_event, fields_of, message_of
from cachekeeper.on_cluster import OnCluster
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


def test_cluster_slots_and_guards_are_those_of_the_worker(vectors):
    given = vectors("cluster")
    for case in given["slots"]:
        assert cluster_slot(case["key"]) == case["slot"], case
    tags, checksum = hash_tags(), 0
    for byte in ",".join(tags).encode():
        checksum = (checksum * 31 + byte) % 2**32
    assert list(tags[:8]) == given["hash_tags"]["first"] and list(tags[-2:]) == given["hash_tags"]["last"]
    assert checksum == given["hash_tags"]["checksum"] and len(set(tags)) == 16_384
    for case in given["guards"]:
        key = guard_key(case["namespace"], cluster_slot(case["key"]))
        assert key == case["guard"] and cluster_slot(key) == cluster_slot(case["key"])
    for case in given["guard_texts"]:
        assert parse_guard(case["text"].encode()) == case["shard"]
    for case in given["covers"]:
        covered = parse_cluster_slots(case["text"])
        assert all(covered[slot] for slot in case["in"]) and not any(covered[slot] for slot in case["out"]), case
    for parse, texts in ((parse_guard, given["invalid_guards"]), (parse_cluster_slots, given["invalid_covers"])):
        for text in texts:
            with pytest.raises(ValueError):
                parse(text)


def test_freshness_on_a_cluster_is_that_of_guard_and_watermark(vectors):
    product = Dataset("product", Template.parse("{id}"), "json", "one", False, False)
    for case in vectors("cluster")["verdicts"]:
        map = ClusterMap([("h", 1)])
        assert map.note([[0, 16_383, [b"h", 1, b"id"]]], ("h", 1))
        key = "{%s}" % hash_tags()[case["slot"]]
        there = {
            guard_key("shop", case["slot"]): case["guard"],
            watermark_key("shop", case["shard"]): case["watermark"] and json.dumps(case["watermark"]),
            key: '{"id":1}',
        }
        steps = OnCluster("shop", map, 1.0, 1 << 20).read([(product, key)], Token.parse(case["token"]))
        answers, found = None, None
        while found is None:
            try:
                requests = steps.send(answers)
                told = [[there.get(command[1]) for command in one.commands] for one in requests]
                answers = [[one and one.encode() for one in replies] for replies in told]
            except StopIteration as end:
                (found,) = end.value
        assert (found.freshness, found.value) == (case["freshness"], {"id": 1}), case
