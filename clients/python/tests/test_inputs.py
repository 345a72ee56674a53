"""What callers give, what Redis tells, and what is made of it."""

import json
from datetime import date, datetime, timezone
from decimal import Decimal
from uuid import UUID

import pytest
import redis

import cachekeeper
from cachekeeper.connection import explain, parse_sentinels
from cachekeeper.directory import parse_directory
from cachekeeper.reading import judge
from cachekeeper.template import Template
from cachekeeper.tokens import Token, take_token
from cachekeeper.writes import Command, outcome

SERVICE = {
    "version": 1,
    "events": {"channels": ["c"], "stream": None},
    "writes": {"stream": "w", "reply_prefix": "r:"},
    "later": "ignored",
}


def entries(key="product:{id}", **more):
    return {"key": key, "format": "json", "rows": "one", "compression": None, "negative": False, "write": True, **more}


def directory(**datasets):
    fields = {b"service": json.dumps(SERVICE).encode()}
    fields.update({f"dataset:{name}".encode(): json.dumps(told).encode() for name, told in datasets.items()})
    return parse_directory(fields, "shop", "redis at h:1")


def test_a_namespace_that_nobody_registered_is_named():
    with pytest.raises(cachekeeper.NotRegistered, match="'shop'.*redis at h:1.*ck:{shop:0}:directory"):
        parse_directory({}, "shop", "redis at h:1")
    with pytest.raises(cachekeeper.UnsupportedVersion, match="version 2"):
        parse_directory({"service": json.dumps({**SERVICE, "version": 2})}, "shop", "h")


def test_a_key_belongs_to_one_dataset_or_it_is_asked_which():
    found = directory(product=entries(), other=entries("{any}"), stock=entries("stock:{id}:{city}"))
    assert found.dataset("stock").key((42, "berlin")) == "stock:42:berlin"
    assert found.dataset("stock").key({"city": "berlin", "id": 42}) == "stock:42:berlin"
    assert found.of_key("elsewhere").name == "other"
    with pytest.raises(cachekeeper.InvalidKey, match="other, product"):
        found.of_key("product:1")
    with pytest.raises(cachekeeper.UnknownDataset, match="no dataset 'prodcut'; it has: other, product, stock"):
        found.dataset("prodcut")
    for id in (42, (1, 2, 3), {"id": 1}, (1, None), (1, True), (1, 1.5), (1, "")):
        with pytest.raises(cachekeeper.InvalidKey, match="dataset stock: "):
            found.dataset("stock").key(id)


def test_values_in_keys_are_as_postgres_prints_them():
    template = Template.parse("k:{a}")
    id = UUID("6F9619FF-8B86-D011-B42D-00C04FC964FF")
    for value, text in [
        (2**70, str(2**70)), (id, "6f9619ff-8b86-d011-b42d-00c04fc964ff"), (Decimal("1E+3"), "1000"),
        (Decimal("1.00"), "1.00"), (date(2026, 1, 2), "2026-01-02"), ("a b", "a b"),
    ]:
        assert template.render(value) == f"k:{text}"
    with pytest.raises(cachekeeper.InvalidKey):
        template.render(datetime(2026, 1, 2))


def test_a_verdict_needs_the_life_the_cover_and_the_snapshot():
    token, now = Token.parse("life/1:100:"), datetime(2026, 1, 1, 12, 0, 1, tzinfo=timezone.utc)

    def check(expected, behind=None, **more):
        told = {"incarnation": "life", "snapshot": "1:100:", "as_of": "2026-01-01T12:00:00.12345+00:00", "not_covered": []}
        verdict = judge(json.dumps({**told, **more}).encode(), token, "product", now)
        assert (verdict.freshness, verdict.behind_ms) == (expected, behind), verdict
        assert (verdict.reason == "") == (expected == "fresh")

    check("fresh")
    check("fresh", not_covered=["other"])
    check("stale", behind=877, snapshot="1:99:")
    check("stale", behind=0, snapshot="1:99:", as_of="2026-01-01T12:00:05Z")
    check("unknown", incarnation="other")
    check("unknown", not_covered=["product"])
    check("unknown", snapshot="none")
    assert judge(None, token, "product", now).freshness == "unknown"
    assert judge(b"[]", token, "product", now).freshness == "unknown"


def test_the_same_parameters_are_the_same_bytes():
    known = directory(product=entries(), page=entries("page:{id}", write=False))
    command = Command.new(known, "product", {"b": Decimal("1.50"), "a": b"\x00\xff", "d": date(2026, 1, 2), "n": None}, "one")
    assert command.params == '{"a":"\\\\x00ff","b":"1.50","d":"2026-01-02","n":null}'
    assert command.fields("r:1") == {"dataset": "product", "id": "one", "params": command.params, "reply": "r:1"}
    for dataset, params, id in [
        ("page", {}, None), ("product", [], None), ("product", {"a": float("nan")}, None), ("product", {"a": object()}, None),
        ("product", {}, ""), ("product", {}, "x" * 201), ("product", {}, 7), ("product", {"a": "x" * (1 << 20)}, None),
    ]:
        with pytest.raises(cachekeeper.InvalidWrite):
            Command.new(known, dataset, params, id)


def test_a_reply_is_a_result_or_an_error_with_the_workers_text():
    written = outcome("one", {"ok": True, "rows": 1, "token": "life/1:2:", "cache": "stored"})
    assert (written.rows, str(written.token), written.is_cached) == (1, "life/1:2:", True)
    with pytest.raises(cachekeeper.WriteRejected, match="^no row was touched$") as caught:
        outcome("one", {"ok": False, "error": "no row was touched"})
    assert caught.value.id == "one"


class Connection:
    """As much of DB-API as a token needs."""

    def __init__(self, *row):
        self.row, self.asked = row, []

    def cursor(self):
        return self

    def execute(self, sql):
        self.asked.append(sql)

    def fetchone(self):
        return self.row

    def close(self):
        self.asked.append("close")


def test_a_token_is_taken_after_the_commit_only():
    assert str(take_token(Connection("life/1:2:", False))) == "life/1:2:"
    by_name = Connection()
    by_name.row = {"token": "life/1:2:", "is_open": False}
    assert str(take_token(by_name)) == "life/1:2:"
    with pytest.raises(cachekeeper.InvalidToken, match="after the commit"):
        take_token(Connection("life/1:2:", True))
    with pytest.raises(cachekeeper.NoToken, match="no worker has seen"):
        take_token(Connection(None, False))


def test_urls_of_sentinels_are_read():
    found = parse_sentinels("rediss+sentinel://me:p%40ss@a:1,b/shop/3")
    assert found.nodes == [("a", 1), ("b", 26379)] and found.service == "shop"
    assert found.settings == {"db": 3, "ssl": True, "username": "me", "password": "p@ss"}
    assert parse_sentinels("redis://h/0") is None
    for url in ("redis+sentinel://a:1", "redis+sentinel:///shop", "redis+sentinel://a:1/shop/x"):
        with pytest.raises(cachekeeper.InvalidInput):
            parse_sentinels(url)


def test_errors_are_of_their_kind_and_tell_no_secret():
    for error, kind, said in [
        (redis.ConnectionError("refused"), cachekeeper.Unreachable, "cannot be reached: refused"),
        (redis.TimeoutError(), cachekeeper.Unreachable, "TimeoutError"),
        (redis.exceptions.BusyLoadingError("LOADING"), cachekeeper.Unreachable, "LOADING"),
        (redis.exceptions.ReadOnlyError("READONLY"), cachekeeper.Unreachable, "READONLY"),
        (redis.AuthenticationError("invalid password"), cachekeeper.PermissionDenied, "login"),
        (redis.exceptions.NoPermissionError("NOPERM x"), cachekeeper.PermissionDenied, "acl --for reader"),
        (redis.ResponseError("OOM"), cachekeeper.RedisRefused, "OOM"),
    ]:
        explained = explain(error, "read", "redis at h:1", "reader")
        assert type(explained) is kind and said in str(explained), explained
    with pytest.raises(cachekeeper.Unreachable) as caught:
        cachekeeper.connect("redis://me:secret@127.0.0.1:1/0", "shop")
    assert "127.0.0.1:1" in str(caught.value) and "secret" not in str(caught.value)
    for url in ("http://h", "h:6379"):
        with pytest.raises(cachekeeper.InvalidInput):
            cachekeeper.connect(url, "shop")
    with pytest.raises(cachekeeper.InvalidInput, match="decode_responses"):
        cachekeeper.Cache(redis.Redis(decode_responses=True), "shop")
