//! Values of each type: those at the edges, and random ones.

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use super::FORMS;

/// A type, the texts of its edge values, and how a random one is made.
pub struct Sample {
    pub kind: &'static str,
    pub edges: &'static [&'static str],
    random: fn(&mut StdRng) -> String,
}

impl Sample {
    /// The forms that this type is tried in.
    pub fn forms(&self) -> impl Iterator<Item = (&'static str, &'static str)> + 'static {
        FORMS.into_iter()
    }

    /// The edge value at a position as SQL; behind the last one an edge value, a random one or a null.
    pub fn value(&self, position: usize, random: &mut StdRng) -> String {
        let text = match self.edges.get(position) {
            Some(edge) => (*edge).to_owned(),
            None => match random.random_range(0..10) {
                0 => return "null".to_owned(),
                1..4 => self.edges[random.random_range(0..self.edges.len())].to_owned(),
                _ => (self.random)(random),
            },
        };
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// What the types below need.
pub const SETUP: &str = "
    create extension citext;
    create extension ltree;
    create extension hstore;
    create type wordrange as range (subtype = text);
    create table \"odd \"\"table\" (id int);
    create type odd_type as (id int);
    create type mood as enum ('sad', 'quote\" back\\ 🦀', '');
    create domain letter as \"char\";
    create domain tiny as smallint check (value < 30000);
    create domain tinier as tiny;
    create type pair as (a integer, b text);";

fn pick(random: &mut StdRng, choices: &[&str]) -> String {
    choices[random.random_range(0..choices.len())].to_owned()
}

fn digits(random: &mut StdRng, most: usize) -> String {
    let count = random.random_range(1..=most);
    (0..count).map(|_| char::from(b'0' + random.random_range(0..10))).collect()
}

/// Signed, of any size below the bits.
fn integer(random: &mut StdRng, bits: u32) -> String {
    let shift = 64 - random.random_range(1..=bits);
    (random.next_u64().cast_signed() >> shift).to_string()
}

fn numeric(random: &mut StdRng) -> String {
    let sign = pick(random, &["", "-"]);
    let (whole, fraction) = (digits(random, 30), digits(random, 30));
    match random.random_range(0..4) {
        0 => format!("{sign}{whole}"),
        1 => format!("{sign}{whole}.{fraction}"),
        2 => format!("{sign}0.{}{fraction}", "0".repeat(random.random_range(0..20))),
        _ => format!("{sign}{whole}e{}", random.random_range(-40..40)),
    }
}

fn text(random: &mut StdRng) -> String {
    let count = random.random_range(0..12);
    (0..count)
        .map(|_| match random.random_range(0..6) {
            // A text holds no zero.
            0 => char::from(random.random_range(1..32)),
            1 => *['"', '\\', '/', '\'', '{', ',', '\u{7f}', '\u{2028}']
                .get(random.random_range(0..8))
                .unwrap(),
            2 => char::from_u32(random.random_range(0x80..0xd800)).unwrap(),
            3 => char::from_u32(random.random_range(0x1_0000..0x11_0000)).unwrap(),
            _ => char::from(random.random_range(32..127)),
        })
        .collect()
}

fn hex(random: &mut StdRng) -> String {
    let count = random.random_range(0..20);
    format!("\\x{}", (0..count).map(|_| format!("{:02x}", random.random_range(0..256))).collect::<String>())
}

fn date(random: &mut StdRng) -> String {
    let year = if random.random() { random.random_range(1..5000) } else { random.random_range(1900..2100) };
    let (month, day) = (random.random_range(1..13), random.random_range(1..29));
    // Far back only where a timestamp reaches too.
    let era = if year < 4700 && random.random_range(0..8) == 0 { " BC" } else { "" };
    format!("{year:04}-{month:02}-{day:02}{era}")
}

fn time(random: &mut StdRng) -> String {
    let (hour, minute) = (random.random_range(0..24), random.random_range(0..60));
    let fraction = pick(random, &["", ".5", ".000001", ".123456", ".12", ".1000"]);
    format!("{hour:02}:{minute:02}:{:02}{fraction}", random.random_range(0..60))
}

fn moment(random: &mut StdRng) -> String {
    let date = date(random);
    let time = time(random);
    match date.strip_suffix(" BC") {
        Some(date) => format!("{date} {time} BC"),
        None => format!("{date} {time}"),
    }
}

fn zone(random: &mut StdRng) -> String {
    pick(random, &["+00", "-03:30", "+05:45", "-11", "+14", "+00:00:01", "-15:59:59"])
}

fn interval(random: &mut StdRng) -> String {
    let mut part = |bits| integer(random, bits);
    format!("{} mons {} days {} hours {} secs", part(20), part(20), part(12), part(40))
}

fn float(random: &mut StdRng, bits: f64) -> String {
    match random.random_range(0..3) {
        0 => integer(random, 40),
        1 => format!("{:e}", (random.random::<f64>() - 0.5) * 10_f64.powf(random.random_range(-bits..bits))),
        _ => numeric(random),
    }
}

fn float8(random: &mut StdRng) -> String {
    match random.random_range(0..2) {
        0 => Some(f64::from_bits(random.next_u64()))
            .filter(|value| value.is_finite())
            .unwrap_or(0.5)
            .to_string(),
        _ => float(random, 300.0),
    }
}

fn address(random: &mut StdRng) -> String {
    let mut part = || random.random_range(0..256);
    format!("{}.{}.{}.{}", part(), part(), part(), part())
}

fn json(random: &mut StdRng) -> String {
    let text = serde_json::to_string(&text(random)).unwrap();
    match random.random_range(0..5) {
        0 => text,
        1 => numeric(random).replace("e", "1e"),
        2 => format!("[1, {text} , [], {{ }}, null]"),
        3 => format!("{{\"a\": {text}, \"\": {{\"b\":[true,false]}}}}"),
        _ => integer(random, 64),
    }
}

fn valid_json(random: &mut StdRng) -> String {
    Some(json(random))
        .filter(|text| serde_json::from_str::<serde_json::Value>(text).is_ok())
        .unwrap_or("7".to_owned())
}

fn octets(random: &mut StdRng, count: usize) -> String {
    (0..count).map(|_| format!("{:02x}", random.random_range(0..256))).collect::<Vec<_>>().join(":")
}

fn bits(random: &mut StdRng, count: usize) -> String {
    (0..count).map(|_| pick(random, &["0", "1"])).collect()
}

const TEXTS: &[&str] = &[
    "",
    " ",
    "plain",
    "\"\\/\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}",
    "ünïcödé 🦀\u{ffff}\u{2028}",
    "{1,NULL}",
    "(a,\"b\")",
    "null",
];

#[rustfmt::skip]
pub fn samples() -> Vec<Sample> {
    fn of(kind: &'static str, edges: &'static [&'static str], random: fn(&mut StdRng) -> String) -> Sample {
        Sample { kind, edges, random }
    }
    vec![
        of("boolean", &["true", "false"], |random| pick(random, &["true", "false"])),
        of("smallint", &["0", "-1", "-32768", "32767", "127", "128", "255", "256", "-33"], |random| integer(random, 16)),
        of("integer", &["0", "-1", "-2147483648", "2147483647", "65535", "65536", "-32769"], |random| integer(random, 32)),
        of("bigint", &["0", "-1", "-9223372036854775808", "9223372036854775807", "4294967295", "4294967296"], |random| integer(random, 64)),
        of("oid", &["0", "4294967295", "2147483648"], |random| random.random::<u32>().to_string()),
        of("real", &["0", "-0", "NaN", "Infinity", "-Infinity", "3.4028235e38", "1.1754944e-38", "1e-45", "16777216", "123456", "1e6", "0.0001", "0.00001"], |random| float(random, 30.0).parse::<f32>().ok().filter(|value| value.is_finite()).unwrap_or(0.5).to_string()),
        of("double precision", &["0", "-0", "NaN", "Infinity", "-Infinity", "1.7976931348623157e308", "5e-324", "2.2250738585072014e-308", "1e15", "123456789012345", "9007199254740993", "0.0001", "0.00001"], float8),
        of("numeric", &["0", "0.00", "-0.00", "NaN", "Infinity", "-Infinity", "1e-100", "1e100", "12345678901234567890.123456789", "9999.9999", "10000", "0.00010000", "99990000.5", "100000000", "-0.5", "18446744073709551615", "18446744073709551616"], numeric),
        of("numeric(12,4)", &["0", "-99999999.9999", "1.5", "0.0001", "NaN"], |random| format!("{}.{}", integer(random, 20), digits(random, 4))),
        of("text", TEXTS, text),
        of("varchar(40)", TEXTS, text),
        of("character(40)", TEXTS, text),
        of("name", &["", "a_name", "ünïcödé 🦀"], |random| text(random).chars().take(9).collect()),
        of("\"char\"", &["", "x", "\"", "\\", "\n", "~", "\\200", "\\377", "é"], |random| char::from(random.random_range(1..127)).to_string()),
        of("citext", TEXTS, text),
        of("bytea", &["", "\\x00", "\\xff00fe", "\\x5c78"], hex),
        of("uuid", &["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"], |random| format!("{:032x}", u128::from(random.next_u64()) << 64 | u128::from(random.next_u64()))),
        of("json", &["null", " {\"a\" : [ 1 , 2.50 , true ] } ", "\"\\u00e9\\ud83e\\udd80\\/\"", "123456789012345678901234567890", "-0", "1E5", "[]", "{\"z\":1,\"a\":2}"], valid_json),
        of("jsonb", &["null", "{\"a\": [1, 2.50, true]}", "\"\\u00e9\\ud83e\\udd80\\/\\b\"", "123456789012345678901234567890.5", "1E5", "[[[[]]]]"], valid_json),
        of("date", &["infinity", "-infinity", "0001-01-01", "0001-12-31 BC", "4713-01-01 BC", "5874897-12-31", "2000-02-29", "1999-12-31", "2000-01-01", "1900-03-01", "10000-01-01"], date),
        of("time", &["00:00:00", "24:00:00", "23:59:59.999999", "00:00:00.000001", "12:30:00.50"], time),
        of("timetz", &["00:00:00+00", "24:00:00-15:59:59", "12:30:00+15:59:59", "12:30:00-00:30", "12:30:00-00:00:01"], |random| format!("{}{}", time(random), zone(random))),
        of("timestamp", &["infinity", "-infinity", "294276-12-31 23:59:59.999999", "4713-01-01 00:00:00 BC", "0001-12-31 23:59:59.9 BC", "1999-12-31 23:59:59.999999", "2000-01-01 00:00:00", "10000-01-01 00:00:00.1"], moment),
        of("timestamptz", &["infinity", "-infinity", "294276-12-31 23:59:59.999999+00", "4713-01-02 00:00:00+00 BC", "0044-03-15 12:00:00+00 BC", "1999-12-31 23:59:59.999999-05:30", "1883-11-18 12:00:00 America/New_York"], |random| format!("{} UTC", moment(random))),
        of("timestamp(2)", &["2026-01-02 03:04:05.678901", "1999-12-31 23:59:59.995"], moment),
        of("interval", &["0", "-1 mons 1 day -00:00:00.000001", "1 year -1 mons 3 days -04:05:06.789", "-1 day", "-0.5 secs", "36:00:00", "178000000 years", "-178000000 years", "2147483647 days", "-2147483648 days", "2562047788:00:54.775807", "-2562047788:00:54.775807", "1 min -1 sec", "59.9 secs", "-59 mins -0.000001 secs"], interval),
        of("inet", &["192.168.0.1", "192.168.0.1/24", "0.0.0.0/0", "255.255.255.255/32", "::", "::1/128", "2001:db8::1/64", "::ffff:1.2.3.4", "::1.2.3.4", "1:0:0:2:0:0:0:3", "fe80::1:0:0:1", "1:2:3:4:5:6:0:8", "2001:0:0:1:0:0:1:1/7"], address),
        of("cidr", &["10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "2001:db8::/32", "::/0", "::ffff:1.2.3.0/120"], address),
        of("macaddr", &["08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"], |random| octets(random, 6)),
        of("macaddr8", &["08:00:2b:01:02:03:04:05", "ff:ff:ff:ff:ff:ff:ff:ff"], |random| octets(random, 8)),
        of("bit(11)", &["00000000000", "11111111111"], |random| bits(random, 11)),
        of("bit varying", &["", "1", "10000000", "100000001"], |random| { let count = random.random_range(0..40); bits(random, count) }),
        of("mood", &["sad", "quote\" back\\ 🦀", ""], |random| pick(random, &["sad", ""])),
        of("tinier", &["0", "-32768", "29999"], |random| integer(random, 14)),
        of("money", &["0", "-92233720368547758.08", "92233720368547758.07", "-0.05", "1234567.89"], |random| format!("{}.{}", integer(random, 40), digits(random, 2))),
        of("xml", &["<a b=\"&quot;\">\n<c/>é</a>", "text", "<?xml version=\"1.0\" encoding=\"UTF-8\"?><a/>"], |random| format!("<n>{}</n>", integer(random, 40))),
        of("int4range", &["empty", "(,)", "[1,5]", "(-2147483648,)", "[,2147483647)"], |random| { let from = random.random_range(-99..99); format!("[{from},{}]", from + random.random_range(0..9)) }),
        of("numrange", &["empty", "[1.50,2.0)", "(,NaN]", "[-Infinity,Infinity]"], |random| format!("[{}.0,)", integer(random, 40))),
        of("tstzrange", &["empty", "[\"2026-01-01 00:00:00+02\",infinity]", "(,)"], |random| format!("[\"{} UTC\",)", moment(random))),
        of("daterange", &["empty", "[2026-01-01,2026-02-01]", "(,infinity]"], |random| format!("[{},)", date(random))),
        of("wordrange", &["empty", "[a,\"b\"\"c\"]", "(\"\\\\\",)"], |random| format!("[{},)", digits(random, 5))),
        of("int4multirange", &["{}", "{[1,3),[5,9)}", "{(,)}"], |random| format!("{{[{},)}}", integer(random, 30))),
        of("nummultirange", &["{}", "{[1.50,2.0),[3,)}", "{(,NaN]}"], |random| format!("{{[{}.0,)}}", integer(random, 40))),
        of("tstzmultirange", &["{}", "{[\"2026-01-01 00:00:00+02\",infinity]}"], |random| format!("{{[\"{} UTC\",)}}", moment(random))),
        of("wordmultirange", &["{}", "{[a,\"b\"\"c\"],[d,e)}"], |random| format!("{{[{},)}}", digits(random, 5))),
        of("letter", &["x", "", "\u{7f}"], |random| pick(random, &["a", "Z"])),
        of("point", &["(0,-0)", "(NaN,Infinity)", "(1e300,0.1)"], |random| format!("({},{})", float(random, 90.0), float(random, 90.0))),
        of("lseg", &["[(0,0),(1,1)]"], |random| format!("[({},0),(1,1)]", integer(random, 30))),
        of("box", &["(0,0),(1,1)"], |random| format!("(0,0),({},1)", integer(random, 30))),
        of("path", &["[(0,0),(1,1),(2,0)]", "((0,0),(1,1),(2,0))"], |random| format!("[(0,0),({},1)]", integer(random, 30))),
        of("polygon", &["((0,0),(1,1),(2,0))"], |random| format!("((0,0),({},1),(2,0))", integer(random, 30))),
        of("line", &["{1,2,3}", "{1,-1,0}"], |random| format!("{{1,2,{}}}", integer(random, 30))),
        of("circle", &["<(0,0),5>"], |random| format!("<({},0),5>", integer(random, 30))),
        of("tsvector", &["", "'a':1A,3 'b c':2 'q\"':4"], |random| format!("w{}:{}", digits(random, 9), random.random_range(1..9))),
        of("tsquery", &["", "'a' & !'b' | 'c':*", "a <-> b"], |random| format!("w{}", digits(random, 9))),
        of("jsonpath", &["$", "$.a[*] ? (@.b > 1)", "strict $.\"q\\\"\""], |random| format!("$.a{}", digits(random, 5))),
        of("pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF"], |random| format!("{:X}/{:X}", random.random::<u32>(), random.random::<u32>())),
        of("xid", &["0", "4294967295"], |random| random.random::<u32>().to_string()),
        of("xid8", &["0", "18446744073709551615"], |random| random.next_u64().to_string()),
        of("tid", &["(0,0)", "(4294967295,65535)"], |random| format!("({},1)", random.random::<u32>())),
        of("pg_snapshot", &["10:20:10,14,15"], |_| "7:7:".to_owned()),
        of("regclass", &["-", "pg_class", "\"odd \"\"table\""], |random| random.random_range(90_000_u32..99_000).to_string()),
        of("regtype", &["integer", "odd_type[]"], |random| random.random_range(90_000_u32..99_000).to_string()),
        of("regproc", &["-", "pg_backend_pid"], |random| random.random_range(90_000_u32..99_000).to_string()),
        of("ltree", &["", "Top.Science.Astronomy"], |random| format!("a{}.b", digits(random, 5))),
        of("hstore", &["", "a=>1, b=>NULL, \"q\\\"\"=>\"é\\\\\""], |random| format!("k=>{}", digits(random, 5))),
        of("pair", &["(1,x)", "(,)", "(-5,\"\"\"\\\\\")"], |random| format!("({},)", integer(random, 32))),
    ]
}
