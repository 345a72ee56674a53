//! Any bytes, and any event in both encodings.

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

fn settings() -> ProptestConfig {
    ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() }
}

/// Any JSON, also what belongs into no event.
fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(|value| json!(value)),
        any::<i64>().prop_map(|value| json!(value)),
        any::<u64>().prop_map(|value| json!(value)),
        any::<f64>().prop_map(|value| json!(value)),
        "\\PC{0,8}".prop_map(|value| json!(value)),
        prop::sample::select(vec!["", "a", "ck:a", "refresh", "delete", "\0", "\u{202e}"])
            .prop_map(|value| json!(value)),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::Array),
            prop::collection::hash_map("[a-z]{0,3}", inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

/// A map that is nearly an event.
fn any_map() -> impl Strategy<Value = Json> {
    let names =
        vec!["op", "id", "at", "key", "CacheKey", "keys", "tag", "tags", "dataset", "ids", "x", "Key"];
    let fitting = prop_oneof![
        Just(("key", json!("a"))),
        Just(("keys", json!(["a", "b"]))),
        Just(("tag", json!("t"))),
        Just(("dataset", json!("d"))),
        Just(("ids", json!([1, "b", [true, -2]]))),
        Just(("op", json!("delete"))),
    ];
    let any_field = (prop::sample::select(names), any_json());
    prop::collection::vec(prop_oneof![fitting, any_field], 0..6).prop_map(|fields| {
        let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value));
        Json::Object(fields.collect())
    })
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{1,12}", "(?s).{1,12}"].prop_filter("not reserved", |text| !text.starts_with("ck:"))
}

fn any_event() -> impl Strategy<Value = Event> {
    let texts = || prop::collection::vec(any_text(), 0..4);
    let ids = prop::collection::vec(prop::collection::vec(any_text(), 1..4), 0..4);
    let op = prop_oneof![Just(None), Just(Some(Op::Refresh)), Just(Some(Op::Delete))];
    let head = (op, prop::option::of(any_text()), any::<Option<u64>>());
    let rows = prop::option::of((any_text(), ids));
    let event = (head, texts(), texts(), rows).prop_map(|((op, id, at_ms), keys, tags, rows)| {
        let (dataset, ids) = rows.map_or((None, Vec::new()), |(name, ids)| (Some(name), ids));
        Event { op, id, at_ms, keys, tags, dataset, ids }
    });
    event.prop_filter("names something", |event| {
        !event.keys.is_empty() || !event.tags.is_empty() || event.dataset.is_some()
    })
}

/// The result as far as both encodings must agree.
fn outcome(message: &[u8]) -> Result<Event, &'static str> {
    Event::decode(message).map_err(|invalid| {
        let text = invalid.to_string();
        assert!(text.len() < 600 && text.chars().all(is_printable), "{text:?}");
        invalid.reason()
    })
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(outcome(&bytes));
        for first in [b'{', 0x81, 0x8f, 0xde, 0xdf] {
            let mut message = vec![first];
            message.extend(&bytes);
            drop(outcome(&message));
        }
    }

    #[test]
    fn no_damage_makes_it_panic(
        map in any_map(),
        is_json in any::<bool>(),
        position in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        end in any::<prop::sample::Index>(),
    ) {
        let mut message = if is_json { map.to_string().into_bytes() } else { rmp_serde::to_vec(&map).unwrap() };
        let position = position.index(message.len());
        message[position] = byte;
        drop(outcome(&message));
        message.truncate(end.index(message.len()));
        drop(outcome(&message));
    }

    #[test]
    fn both_encodings_mean_the_same(map in any_map()) {
        let json = outcome(map.to_string().as_bytes());
        let msgpack = outcome(&rmp_serde::to_vec(&map).unwrap());
        prop_assert_eq!(json, msgpack, "{}", map);
    }

    #[test]
    fn what_is_published_is_what_arrives(event in any_event()) {
        let json = event.to_json();
        prop_assert_eq!(Event::decode(json.as_bytes()), Ok(event.clone()));
        let map: Json = serde_json::from_str(&json).unwrap();
        let msgpack = rmp_serde::to_vec(&map).unwrap();
        prop_assert_eq!(Event::decode(&msgpack), Ok(event));
    }

    #[test]
    fn no_fields_make_it_panic(
        fields in prop::collection::vec(
            (prop::sample::select(vec!["key", "keys", "ids", "at", "op", "dataset", "x"]), any::<Vec<u8>>()),
            0..5,
        ),
    ) {
        drop(Event::from_fields(fields.iter().map(|(name, bytes)| (*name, bytes.as_slice()))));
    }
}
