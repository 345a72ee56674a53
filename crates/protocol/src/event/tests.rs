use super::*;

fn keys(keys: &[&str]) -> Event {
    Event { keys: texts(keys), ..Event::default() }
}

fn dataset(name: &str, ids: &[&[&str]]) -> Event {
    Event {
        dataset: Some(name.to_owned()),
        ids: ids.iter().map(|id| texts(id)).collect(),
        ..Event::default()
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// The same object in MessagePack.
fn msgpack(json: &str) -> Vec<u8> {
    rmp_serde::to_vec(&serde_json::from_str::<serde_json::Value>(json).unwrap()).unwrap()
}

/// Both encodings are this event.
#[track_caller]
fn check(json: &str, expected: &Event) {
    assert_eq!(Event::decode(json.as_bytes()).as_ref(), Ok(expected), "{json}");
    assert_eq!(Event::decode(&msgpack(json)).as_ref(), Ok(expected), "MessagePack of {json}");
    let fields = expected.to_fields();
    let fields = fields.iter().map(|(name, text)| (name, text.as_bytes()));
    assert_eq!(Event::from_fields(fields).as_ref(), Ok(expected), "fields of {json}");
}

#[track_caller]
fn check_invalid(message: impl AsRef<[u8]>, reason: &str, part: &str) {
    let invalid = Event::decode(message.as_ref()).unwrap_err();
    assert_eq!(invalid.reason(), reason, "{invalid}");
    let text = invalid.to_string();
    assert!(text.contains(part), "{text}");
    assert!(text.len() < 600 && text.chars().all(is_printable), "{text:?}");
}

/// Both encodings are refused alike.
#[track_caller]
fn check_both_invalid(json: &str, reason: &str, part: &str) {
    check_invalid(json, reason, part);
    check_invalid(msgpack(json), reason, part);
}

#[test]
fn every_form_of_the_design() {
    check(r#"{"key": "product:42"}"#, &keys(&["product:42"]));
    check(r#"{"CacheKey": "product:42"}"#, &keys(&["product:42"]));
    check(r#"{"keys": ["a", "b"]}"#, &keys(&["a", "b"]));
    let tags = |tags| Event { tags: texts(tags), ..Event::default() };
    check(r#"{"tag": "category:7"}"#, &tags(&["category:7"]));
    check(r#"{"tags": ["x", "ck:y"]}"#, &tags(&["x", "ck:y"]));
    check(r#"{"dataset": "product"}"#, &dataset("product", &[]));
    check(
        r#"{"dataset": "product", "ids": [42, -43, "a", true, [1, "b", false]]}"#,
        &dataset("product", &[&["42"], &["-43"], &["a"], &["true"], &["1", "b", "false"]]),
    );
    check(
        r#"{"op": "delete", "id": "e-1", "at": 1700000000123, "key": "a"}"#,
        &Event {
            op: Some(Op::Delete),
            id: Some("e-1".to_owned()),
            at_ms: Some(1_700_000_000_123),
            ..keys(&["a"])
        },
    );
    check(r#"{"op": "refresh", "key": "a"}"#, &Event { op: Some(Op::Refresh), ..keys(&["a"]) });
}

#[test]
fn all_that_an_event_names_is_applied() {
    let all = r#"{"key": "a", "keys": ["b"], "tag": "t", "tags": ["u"], "dataset": "d", "ids": [1]}"#;
    let expected = Event { keys: texts(&["a", "b"]), tags: texts(&["t", "u"]), ..dataset("d", &[&["1"]]) };
    check(all, &expected);
    // `serde_json::Value` would keep the last one only.
    let twice = Event::decode(br#"{"key": "a", "key": "b", "CacheKey": "c"}"#);
    assert_eq!(twice, Ok(keys(&["a", "b", "c"])));
}

#[test]
fn what_means_nothing_is_ignored() {
    check(r#"{"Key": 1, "key": "a", "meta": {"a": [1, 2.5, null, {"b": true}]}, "n": 1e300}"#, &keys(&["a"]));
    check(
        r#"{"op": null, "id": null, "at": null, "key": "a", "tag": null, "tags": null, "dataset": null}"#,
        &keys(&["a"]),
    );
    check(r#"{"key": "a", "tags": []}"#, &keys(&["a"]));
    check(r#"{"at": 5.0, "key": "a"}"#, &Event { at_ms: Some(5), ..keys(&["a"]) });
    let blanks = Event::decode(b" \r\n\t{\"key\": \"a\"}\n");
    assert_eq!(blanks, Ok(keys(&["a"])));
}

#[test]
fn bare_keys() {
    for (message, key) in [
        ("product:42", "product:42"),
        ("  product:42\r\n", "product:42"),
        ("a b", "a b"),
        ("größe:{x}", "größe:{x}"),
        ("[\"a\"]", "[\"a\"]"),
        ("\"a\"", "\"a\""),
    ] {
        assert_eq!(Event::decode(message.as_bytes()), Ok(keys(&[key])), "{message:?}");
    }
    check_invalid("", "empty", "the message is empty");
    check_invalid(" \n", "empty", "the message is empty");
    check_invalid("a\0b", "unprintable_key", "a\u{fffd}b");
    check_invalid("a\u{202e}b", "unprintable_key", "printable");
    check_invalid("\u{feff}{}", "unprintable_key", "printable");
    check_invalid(b"a\xff", "not_utf8", "a bare key");
    check_invalid([0x90], "not_utf8", "a bare key");
    check_invalid("ck:{shop:0}:meta", "reserved_key", "ck:{shop:0}:meta");
    check_invalid("x".repeat(TEXT_BYTES_MAX + 1), "key_too_long", "10241 bytes");
    assert!(Event::decode("x".repeat(TEXT_BYTES_MAX).as_bytes()).is_ok());
}

#[test]
fn faults_are_named() {
    check_both_invalid("{}", "no_target", "no `key`");
    check_both_invalid(r#"{"Key": "a", "foo": 1}"#, "no_target", "\"Key\", \"foo\"");
    check_both_invalid(r#"{"op": "delete"}"#, "no_target", "`dataset`");
    check_both_invalid(r#"{"key": ""}"#, "empty", "`key` is empty");
    check_both_invalid(r#"{"keys": ["a", ""]}"#, "empty", "`keys` is empty");
    check_both_invalid(r#"{"keys": []}"#, "empty", "`keys` is empty");
    check_both_invalid(r#"{"key": "a", "dataset": ""}"#, "empty", "`dataset`");
    check_both_invalid(r#"{"key": 42}"#, "wrong_type", "`key` must be text, not an integer");
    check_both_invalid(r#"{"key": ["a"]}"#, "wrong_type", "not a list");
    check_both_invalid(r#"{"keys": "a"}"#, "wrong_type", "`keys` must be a list, not text");
    check_both_invalid(r#"{"keys": ["a", null]}"#, "wrong_type", "not null");
    check_both_invalid(r#"{"keys": {"a": 1}}"#, "wrong_type", "not a map");
    check_both_invalid(r#"{"key": "ck:{shop:0}:meta"}"#, "reserved_key", "Cachekeeper");
    check_both_invalid(r#"{"keys": ["a", "ck:"]}"#, "reserved_key", "Cachekeeper");
    check_both_invalid(r#"{"key": "a", "op": "Delete"}"#, "unknown_op", "\"Delete\"");
    check_both_invalid(r#"{"key": "a", "op": 1}"#, "wrong_type", "`op`");
    check_both_invalid(r#"{"key": "a", "at": -1}"#, "wrong_type", "`at`");
    check_both_invalid(r#"{"key": "a", "at": 1.5}"#, "wrong_type", "`at`");
    check_both_invalid(r#"{"key": "a", "at": "now"}"#, "wrong_type", "`at`");
    check_both_invalid(r#"{"dataset": "d", "id": 42}"#, "wrong_type", "`id` must be text");
    check_both_invalid(r#"{"ids": [1]}"#, "ids_without_dataset", "`dataset`");
    // Not the whole dataset.
    check_both_invalid(r#"{"dataset": "d", "ids": []}"#, "empty", "`ids` is empty");
    check_both_invalid(r#"{"dataset": "d", "ids": [[]]}"#, "empty", "a member of `ids`");
    check_both_invalid(r#"{"dataset": "d", "ids": [1.5]}"#, "wrong_type", "no integer");
    check_both_invalid(r#"{"dataset": "d", "ids": [null]}"#, "wrong_type", "not null");
    check_both_invalid(r#"{"dataset": "d", "ids": [[[1]]]}"#, "wrong_type", "not a list");
    check_both_invalid(r#"{"dataset": "d", "ids": 1}"#, "wrong_type", "`ids` must be a list");
    check_invalid(r#"{"dataset": "a", "dataset": "b"}"#, "duplicate_field", "`dataset` is given twice");
    check_invalid(r#"{"key": "a""#, "malformed_json", "line 1");
    check_invalid(r#"{"key": "a"} x"#, "malformed_json", "trailing");
    check_invalid(r#"{key: "a"}"#, "malformed_json", "{key");
    // What cannot be read to its end is called malformed, whatever else is wrong.
    check_invalid(r#"{"key": 42, "#, "malformed_json", "EOF");
    check_invalid(b"{\"key\": \"\xff\"}", "not_utf8", "the message");
    check_invalid(r#"{"key": "\ud800"}"#, "malformed_json", "hex escape");
}

#[test]
fn limits_hold() {
    let at_most = format!("{{\"key\":\"a\",\"x\":\"{}\"}}", "x".repeat(EVENT_BYTES_MAX - 18));
    assert_eq!(at_most.len(), EVENT_BYTES_MAX);
    assert_eq!(Event::decode(at_most.as_bytes()), Ok(keys(&["a"])));
    check_invalid(format!("{at_most} "), "too_large", "1048577 bytes");
    let long = "x".repeat(TEXT_BYTES_MAX + 1);
    for field in ["key", "tag", "dataset", "id"] {
        let json = format!("{{\"key\": \"a\", \"{field}\": \"{long}\"}}");
        check_both_invalid(&json, "key_too_long", field);
    }
    let list = |count: usize| vec!["0"; count].join(",");
    let ids = |count| format!("{{\"dataset\": \"d\", \"ids\": [{}]}}", list(count));
    assert_eq!(Event::decode(ids(MEMBERS_MAX).as_bytes()).unwrap().ids.len(), MEMBERS_MAX);
    check_both_invalid(&ids(MEMBERS_MAX + 1), "too_many", "100000");
    // Nor in two lists; what is ignored may be as long as it likes.
    let keys_of = |count: usize| vec!["\"k\""; count].join(",");
    let split = format!("{{\"keys\": [{}], \"keys\": [{}]}}", keys_of(60_000), keys_of(60_000));
    check_invalid(split, "too_many", "100000");
    check(&format!("{{\"key\": \"a\", \"x\": [{}]}}", list(200_000)), &keys(&["a"]));
    check_both_invalid(
        &format!("{{\"dataset\": \"d\", \"ids\": [[{}]]}}", list(ID_PARTS_MAX + 1)),
        "too_many",
        "32 parts",
    );
}

#[test]
fn hostile_depth_is_refused() {
    let nested = |field: &str, depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!("{{\"key\": \"a\", \"{field}\": {open}{close}}}")
    };
    // The event itself is the first level.
    let most = value::DEPTH_MAX - 1;
    check(&nested("x", most), &keys(&["a"]));
    check_both_invalid(&nested("x", most + 1), "too_deep", "64 levels");
    check_both_invalid(&nested("keys", most + 1), "too_deep", "64 levels");
    check_invalid(nested("x", 500_000), "too_deep", "64 levels");
    let maps = format!("{{\"x\": {}", "{\"x\":".repeat(200_000));
    check_invalid(maps, "too_deep", "64 levels");
    for open in [&[0x91_u8][..], &[0x81, 0xa1, b'x'], &[0xdc, 0, 1]] {
        let mut message = vec![0x81, 0xa1, b'x'];
        message.extend(open.repeat(300_000));
        check_invalid(message, "too_deep", "64 levels");
        // Maps can be keys of maps.
        check_invalid([0x81].repeat(1_000_000), "too_deep", "64 levels");
    }
}

#[test]
fn messagepack_as_other_languages_write_it() {
    let map = |name: &[u8], value: &[u8]| {
        let name_length = u8::try_from(name.len()).unwrap();
        [&[0x81, 0xa0 | name_length], name, value].concat()
    };
    let a = Ok(keys(&["a"]));
    assert_eq!(Event::decode(&map(b"key", &[0xa1, b'a'])), a);
    // str 8, 16 and 32, bin 8, 16 and 32.
    for value in [
        &[0xd9, 1, b'a'][..],
        &[0xda, 0, 1, b'a'],
        &[0xdb, 0, 0, 0, 1, b'a'],
        &[0xc4, 1, b'a'],
        &[0xc5, 0, 1, b'a'],
        &[0xc6, 0, 0, 0, 1, b'a'],
    ] {
        assert_eq!(Event::decode(&map(b"key", value)), a, "{value:x?}");
    }
    // map 16 and 32, and names as binary data.
    assert_eq!(Event::decode(b"\xde\x00\x01\xa3key\xa1a"), a);
    assert_eq!(Event::decode(b"\xdf\x00\x00\x00\x01\xc4\x03key\xa1a"), a);
    // Names that are no text, extensions and timestamps are ignored.
    assert_eq!(Event::decode(b"\x84\x01\x02\xa3key\xa1a\x91\x01\xc0\xa1t\xd6\xff\x00\x00\x00\x00"), a);
    let signed = Event::decode(b"\x82\xa7dataset\xa1d\xa3ids\x92\xd3\x00\x00\x00\x00\x00\x00\x00\x2a\xff");
    assert_eq!(signed, Ok(dataset("d", &[&["42"], &["-1"]])));
    check_invalid(map(b"key", &[0xa1, 0xff]), "not_utf8", "`key`");
    check_invalid(map(b"key", &[0xc4, 1, 0xff]), "not_utf8", "`key`");
    check_invalid(map(b"key", &[0xd6, 0xff, 0, 0, 0, 0]), "wrong_type", "`key`");
    check_invalid(b"\x82\xa3key\xa1a\xa3key", "malformed_msgpack", "not MessagePack");
    check_invalid(b"\x81\xa3key\xa1a\n", "malformed_msgpack", "1 bytes follow");
    check_invalid(b"\x81\xc1\xc0", "malformed_msgpack", "not MessagePack");
    check_invalid(b"\x80", "no_target", "`key`");
}

#[test]
fn claimed_lengths_are_not_believed() {
    for claim in [b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff"] {
        for name in ["\u{a1}x", "key", "keys"] {
            let length = u8::try_from(name.len()).unwrap();
            let message = [&[0x81, 0xa0 | length], name.as_bytes(), claim, b"abc"].concat();
            let invalid = Event::decode(&message).unwrap_err();
            assert_eq!(invalid.reason(), "malformed_msgpack", "{invalid}");
        }
    }
    check_invalid(b"\xdf\xff\xff\xff\xff\xa3key\xa1a", "malformed_msgpack", "not MessagePack");
}

#[test]
fn fields_of_a_stream_entry() {
    let read = |fields: &[(&str, &str)]| {
        Event::from_fields(fields.iter().map(|(name, text)| (name.as_bytes(), text.as_bytes())))
    };
    assert_eq!(read(&[("key", "product:42")]), Ok(keys(&["product:42"])));
    assert_eq!(read(&[("key", "a"), ("keys", r#"["b","c"]"#), ("x", "\0")]), Ok(keys(&["a", "b", "c"])));
    let full = [("dataset", "d"), ("ids", "[42,[1,\"b\"]]"), ("op", "refresh"), ("id", "7"), ("at", "123")];
    let expected = Event {
        op: Some(Op::Refresh),
        id: Some("7".to_owned()),
        at_ms: Some(123),
        ..dataset("d", &[&["42"], &["1", "b"]])
    };
    assert_eq!(read(&full), Ok(expected));
    let reason = |fields: &[(&str, &str)]| read(fields).unwrap_err().reason();
    assert_eq!(reason(&[]), "no_target");
    assert_eq!(reason(&[("keys", "product:42")]), "malformed_json");
    assert_eq!(reason(&[("keys", "\"a\"")]), "wrong_type");
    assert_eq!(reason(&[("key", "a"), ("at", "soon")]), "wrong_type");
    assert_eq!(reason(&[("key", "ck:x")]), "reserved_key");
    assert_eq!(reason(&[("keys", &"[".repeat(100_000))]), "too_deep");
    assert_eq!(reason(&[("x", &"y".repeat(EVENT_BYTES_MAX))]), "too_large");
    let not_text: [(&[u8], &[u8]); 2] = [(b"\xff", b"\xff"), (b"key", b"\xff")];
    assert_eq!(Event::from_fields(not_text).unwrap_err().reason(), "not_utf8");
}
