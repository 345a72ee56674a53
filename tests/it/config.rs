//! Wrong configurations: what is said, and where.

use std::collections::BTreeMap;
use std::path::Path;

use cachekeeper_config::Config;
use cachekeeper_config::diagnostic::render;
use cachekeeper_config::schema::json_schema;
use serde_json::json;

fn load(text: &str, environment: &[(&str, &str)]) -> Result<(Config, String), String> {
    let environment: BTreeMap<String, String> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    match Config::load_with(Path::new("f.toml"), text.to_owned(), &environment, cachekeeper::schedule::check)
    {
        Ok((config, warnings)) => Ok((config, render(&warnings))),
        Err(problems) => Err(render(&problems)),
    }
}

const GOOD: &str = "[dataset.p]\nquery = \"select 1 as id\"\nkey = \"p:{id}\"\n";

/// A line added to the good dataset, where the problem is shown, and what is said.
#[test]
fn every_problem_has_a_place_and_help() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("ttl = \"ten\"", "4:7", &["is not a duration", "\"30s\""]),
        ("ttl = 30", "4:7", &["expected text", "in quotes", "\"30s\""]),
        ("ttl_jitter = 0.1", "4:14", &["expected text", "\"10%\""]),
        ("ttl_jitter = 5", "4:14", &["expected text", "\"5%\""]),
        ("rows = 1", "4:8", &["write it in quotes: \"1\""]),
        ("ttl = \"1.5h\"", "4:7", &["is not a duration", "write \"90m\""]),
        ("ttl = \"30\"", "4:7", &["missing unit, write \"30s\""]),
        ("ttl = \"0\"", "4:7", &["out of range", "give 1s to"]),
        ("max_value_size = \"0\"", "4:18", &["out of range", "give 1KiB to"]),
        ("ttl = \"30y\"", "4:7", &["unknown unit \"y\""]),
        ("ttl = \"10ms\"", "4:7", &["out of range", "1s"]),
        ("ttl_jitter = \"10\"", "4:14", &["write \"10%\""]),
        ("ttl_jitter = \"95%\"", "4:14", &["0% to 90%"]),
        ("querry = \"x\"", "4:1", &["unknown key `querry`", "did you mean `query`?"]),
        ("tll = \"1h\"", "4:1", &["did you mean `ttl`?"]),
        ("rows = \"two\"", "4:8", &["\"two\" is not known here"]),
        ("rows = \"mny\"", "4:8", &["did you mean \"many\"?"]),
        ("sort = \"id\"", "4:8", &["rows = \"many\""]),
        ("format = \"raw\"", "4:10", &["needs `value`"]),
        ("value = \"id\"", "4:9", &["goes with format = \"raw\""]),
        ("format = \"raw\"\nvalue = \"id\"\nrows = \"many\"", "4:10", &["many rows"]),
        ("numeric = \"float\"", "4:11", &["one of text, number"]),
        ("tags = \"a\"", "4:8", &["a list of texts"]),
        ("tags = [\"c:{x\"]", "4:12", &["has no `}`"]),
        ("tags = [1]", "4:9", &["expected text"]),
        ("compression = { codec = \"gzip\" }", "4:25", &["none, zstd, lz4"]),
        ("compression = { min_size = \"1\" }", "4:28", &["missing unit"]),
        ("compression = { level = 3 }", "4:17", &["unknown key `level`"]),
        ("refresh = { ahead = \"0%\" }", "4:21", &["1% to 90%"]),
        ("refresh = true", "4:11", &["a table { … }"]),
        ("warm = { schedule = \"61 * * * *\" }", "4:21", &["minute \"61\""]),
        ("warm = { schedule = \"0 0 * * *\", timezone = \"Berlin\" }", "4:45", &["Europe/Berlin"]),
        ("warm = { timezone = \"UTC\" }", "4:21", &["goes with `schedule`"]),
        ("warm = { limit = 0 }", "4:18", &["out of range"]),
        ("warm = { on_start = \"yes\" }", "4:21", &["true or false"]),
        ("scope = \"all\"", "4:9", &["needs `warm`"]),
        ("batch = 0", "4:9", &["1 to 5000"]),
        ("batch = 99999999999999999999", "4:9", &["too large"]),
        ("negative_ttl = \"0s\"", "4:16", &["out of range"]),
        ("on_miss = \"fill\"", "4:11", &["ignore, load"]),
        ("watch = [{ key = { id = \"id\" } }]", "4:10", &["has no `table`", "for example table ="]),
        ("watch = [{ table = \"t\" }]", "4:10", &["exactly one of"]),
        ("watch = [{ table = \"t\", key = { other = \"id\" } }]", "4:31", &["the key has id"]),
        ("watch = [{ table = \"t\", tag = \"x:{\" }]", "4:34", &["has no `}`"]),
        ("watch = \"t\"", "4:9", &["a list of tables"]),
        ("feed = \"required\"\n[feed]\nmode = \"off\"", "4:8", &["mode = \"off\""]),
        ("[service]\nnamespace = \"a b\"", "5:13", &["cannot be a namespace"]),
        ("[service]\nshutdown_timeout = \"0s\"", "5:20", &["1s to 10m"]),
        (
            "[postgres]\nurl = \"mysql://x\"",
            "5:7",
            &["not a postgres:// URL", "postgres:// or postgresql://"],
        ),
        ("[postgres]\npassword_file = \"/nowhere/at/all\"", "5:17", &["cannot be read"]),
        ("[redis]\nurl = \"localhost\"", "5:7", &["redis://"]),
        ("[redis]\nurl = \"redis://localhost/x\"", "5:7", &["does not end in the number of a database"]),
        (
            "[redis]\nurl = \"redis://localhost/0?db=3\"",
            "5:28",
            &["the parameter db of this URL is not supported", "behind the host"],
        ),
        (
            "[redis]\nurl = \"redis://localhost/0?dbb=3\"",
            "5:28",
            &["the parameter dbb of this URL is not known"],
        ),
        ("[redis]\nurl = \"redis://u:a?secret@h\"", "5:7", &["has a parameter that is not known", "%XX"]),
        ("[redis]\nurl = \"redis+sentinel://a/s/0?db=3\"", "5:31", &["the parameter db"]),
        (
            "[redis]\nurl = \"unix:///s?protocol=resp3\"",
            "5:18",
            &["the parameter protocol", "db, user and pass"],
        ),
        ("[redis]\nurl = \"rediss://localhost#insecure\"", "5:7", &["behind a `#`", "ca_file"]),
        ("[redis]\nurl = \"redis+sentinel://a:1,b:x/shop/0\"", "5:29", &["sentinel 2 of this URL"]),
        ("[redis]\nurl = \"redis+sentinel://a:1\"", "5:28", &["names no service", "/mymaster/0"]),
        ("[redis]\nurl = \"redis+sentinel://u:secret@a:x/shop\"", "5:7", &["sentinel 1 of this URL"]),
        ("[redis]\nurl = \"redis+cluster://a:1,b:x\"", "5:28", &["node 2 of this URL"]),
        (
            "[redis]\nca_file = \"/nowhere/ca.pem\"\nurl = \"rediss://h\"",
            "5:11",
            &["/nowhere/ca.pem cannot be read"],
        ),
        ("[redis]\nca_file = \"Cargo.toml\"\nurl = \"rediss://h\"", "5:11", &["holds no certificate", "PEM"]),
        (
            "[redis]\nkey_file = \"Cargo.toml\"\ncert_file = \"x\"\nurl = \"rediss://h\"",
            "5:12",
            &["holds no private key"],
        ),
        (
            "[redis]\nkey_file = \"Cargo.toml\"\nurl = \"rediss://h\"",
            "5:12",
            &["`key_file` without `cert_file`"],
        ),
        (
            "[admin]\nlisten = \"0.0.0.0:9464\"",
            "5:10",
            &["whoever reaches 0.0.0.0:9464", "token_file", "127.0.0.1:9464"],
        ),
        ("[admin]\nlisten = \"[::]:80\"", "5:10", &["whoever reaches [::]:80", "read_token_file"]),
        (
            "[admin]\nhosts = [\"a\", \"http://b:80\"]",
            "5:15",
            &["is not the name of a host", "without scheme"],
        ),
        ("[admin]\nkey_file = \"x\"", "5:12", &["`key_file` without `cert_file`"]),
        ("[admin]\nmax_connections = 1", "5:19", &["32 to 100000"]),
        ("[redis]\nca_file = \"Cargo.toml\"", "5:11", &["asks for no TLS", "rediss://"]),
        ("[redis]\nsentinel_username = \"u\"", "5:21", &["asks for no sentinels", "redis+sentinel://"]),
        ("[redis]\npassword_file = \"/nowhere/at/all\"", "5:17", &["cannot be read"]),
        ("[admin]\nlisten = \"9464\"", "5:10", &["not an address with a port"]),
        ("[log]\nlevel = \"verbose\"", "5:10", &["\"verbose\" is not a log level", "error, warn, info"]),
        ("[log]\nlevel = \"info,redis=loud\"", "5:15", &["\"redis=loud\" is not a log level"]),
        ("ttl = \"1h\"\n[defaults]\nttl = \"x\"", "6:7", &["is not a duration"]),
        (
            "[dataset.\"a.b\"]\nquery = \"select 1\"\nkey = \"q:{id}\"",
            "4:10",
            &["cannot be a name in [dataset]"],
        ),
        ("rows = \"many\"\nsort = \" \"", "5:8", &["there is nothing in this text"]),
        ("[invalidation]\nchannels = [\"a\", \"\"]", "5:18", &["there is nothing in this text"]),
        ("[log]\nformat = \"xml\"", "5:10", &["auto, pretty, json"]),
        ("[invalidation]\nmax_pending = -1", "5:15", &["out of range"]),
        ("[datasett.x]", "4:2", &["unknown key `datasett` at the top", "did you mean `dataset`?"]),
        ("[dataset.q]\nquery = \"select 1\"", "4:10", &["has no `key`"]),
        ("[dataset.q]\nkey = \"q:{id}\"", "4:10", &["has no `query`"]),
        ("[dataset.q]\nquery = \" ; \"\nkey = \"q:{id}\"", "5:9", &["query is empty"]),
        ("[dataset.q]\nquery = \"select 1\"\nkey = \"p:{x}\"", "6:7", &["could coincide"]),
        ("[dataset.q]\nquery = \"select 1\"\nkey = \"q\"", "6:7", &["no placeholder"]),
        ("[dataset.q]\nquery = \"select 1\"\nkey = \"q:{a}:{a}\"", "6:", &["stands twice"]),
        ("[dataset.q]\nquery = \"select 1\"\nkey = \"q:{a}{b}\"", "6:13", &["cannot be read back"]),
        ("[dataset.q]\nquery = \"select 1\"\nkey = \"ck:{a}\"", "6:7", &["Cachekeeper's own"]),
        ("[dataset.q]\nquery = \"select 1\"\nkey = \"{a}\"", "6:7", &["begins with a placeholder"]),
        ("x = \"open", "4:", &["not TOML"]),
        ("ttl \"1h\"", "4:", &["not TOML: key with no value", "write ttl = …"]),
        ("[log]\nlevel = info", "5:", &["a text without quotes", "write it in quotes: level = \"…\""]),
        ("warm = { on_start = True }", "4:", &["not TOML"]),
        ("tags = [\"a\",\nttl = \"1h\"", "4:8", &["this `[` has no `]`", "1 error"]),
        (
            "[log]\n[dataset.p]\nttl = \"1h\"\nformat = \"jsn\"",
            "5:",
            &["[dataset.p] stands in line 1 already", "1 error"],
        ),
        ("ttl = \"1h\"\nttl = \"2h\"", "5:", &["`ttl` stands in line 4 already", "1 error"]),
        ("ttl = \"1 hour\"", "4:7", &["no blank stands before the unit, write \"1h\""]),
        ("ttl = \"2minutes\"", "4:7", &["unknown unit \"minutes\", write \"2m\""]),
        ("compression = { min_size = \"1 kib\" }", "4:28", &["write \"1KiB\""]),
        ("refresh = { ahead = \"30s\" }", "4:21", &["a share ends with %, write \"20%\""]),
        ("format = \"JSON\"", "4:10", &["did you mean \"json\"?"]),
        ("rows = \"multiple\"\nsort = \"id\"", "4:8", &["\"multiple\" is not known here", "1 error"]),
        ("format = \"raww\"\nvalue = \"id\"", "4:10", &["did you mean \"raw\"?", "1 error"]),
        (
            "warm = { schedule = \"61 * * * *\", timezone = \"Berlin\" }",
            "4:21",
            &["minute \"61\"", "2 errors"],
        ),
        (
            "watch = { table = \"t\" }",
            "4:9",
            &["a list of tables", "for example watch = [ { table = \"products\""],
        ),
        ("write = \"update t\"", "4:9", &["a table { … }", "for example write = { statement ="]),
        ("warm = true", "4:8", &["for example warm = { on_start = true }"]),
        ("[service]\nttl = \"1h\"", "5:1", &["it belongs into [defaults] or [dataset.NAME]"]),
        (
            "[user]\nquery = \"select 1\"\nkey = \"user:{id}\"",
            "4:2",
            &["unknown section `user`", "[dataset.user]", "1 error"],
        ),
        ("[dataset.q]\nqurey = \"select 1\"\nkey = \"q:{id}\"", "5:1", &["did you mean `query`?", "1 error"]),
        (
            "[datasets.q]\nquery = \"select 1\"\nkey = \"q:{id}\"\nttl = \"ten\"",
            "7:7",
            &["did you mean `dataset`?", "is not a duration"],
        ),
        ("[redis]\nurl = \"${REDIS_URL}\"", "5:7", &["variables are not put", "CACHEKEEPER__REDIS__URL"]),
        ("write = {}", "4:9", &["has no `statement`"]),
        ("write = { statement = \" ; -- x\" }", "4:23", &["write statement is empty"]),
        ("write.statement = \"delete from t where id = :id; select ';' ;\"", "4:50", &["a second statement"]),
        ("write.statement = \"delete from t where id = $1\"", "4:45", &["a number here instead of a name"]),
        ("[writes]\nstream = \"ck:writes\"", "5:10", &["Cachekeeper's own"]),
        ("[writes]\nstream = \"cache:invalidation:log\"", "5:10", &["would both use", "names of their own"]),
        (
            "[invalidation]\nstream = \"cache:writes:dead\"",
            "5:10",
            &["would both use the key cache:writes:dead"],
        ),
        ("[invalidation]\nstream = \"p:events\"", "3:7", &["could coincide with p:events"]),
        (
            "write.statement = \"delete from t where id = :id\"\n[writes]\nstream = \"p:writes\"",
            "3:7",
            &["p:{id} could coincide with p:writes, which [writes] stream uses", "another prefix"],
        ),
    ];
    for (line, place, fragments) in cases {
        let problems = match load(&format!("{GOOD}{line}\n"), &[]) {
            Ok((_, warnings)) => panic!("{line}: accepted, with {warnings:?}"),
            Err(problems) => problems,
        };
        assert!(problems.contains(&format!("--> f.toml:{place}")), "{line}: not at {place}\n{problems}");
        for fragment in *fragments {
            assert!(problems.contains(fragment), "{line}: does not say {fragment:?}\n{problems}");
        }
    }
}

#[test]
fn streams_and_statements_that_are_only_odd_are_accepted() {
    for (line, warning) in [
        // Nothing can be written, so the stream is not used.
        ("[writes]\nstream = \"p:writes\"", ""),
        ("[writes]\nstream = \"\"\n[invalidation]\nstream = \"\"", ""),
        ("write.statement = \"delete from t where id = :id -- ; all\\n;\"", ""),
        ("write.statement = \"delete from t\"", "no parameter, so every write does the same"),
    ] {
        let (_, warnings) = load(&format!("{GOOD}{line}\n"), &[]).unwrap();
        assert!(
            warnings.contains(warning) && warnings.is_empty() == warning.is_empty(),
            "{line}: {warnings}"
        );
    }
}

/// What is allowed and hardly meant, and what is like it and sensible.
#[test]
fn what_is_hardly_meant_is_a_warning() {
    let cases = [
        ("tags = [\"a:{id}\", \"a:{id}\"]", "4:", "stands twice"),
        (
            "watch = [{ table = \"t\", dataset = true }, { table = \"t\", dataset = true }]",
            "4:",
            "stands twice",
        ),
        ("warm = { limit = 5 }", "4:", "which 5 entries are filled is not defined"),
        ("scope = \"all\"\nwarm = { limit = 5, order_by = \"id\" }", "4:", "a backfill ends after 5 entries"),
        ("ttl = \"1m\"\nnegative_ttl = \"10h\"", "5:", "kept for 10h, longer than a row (1m)"),
        ("compression = { codec = \"zstd\", min_size = \"100GiB\" }", "4:", "no value is compressed"),
        ("write.statement = \"update t set a = :a\"", "4:", "touches every row of the table"),
        ("write.statement = \"update t set a = ':a' where id = :id\"", "4:", "is text and no parameter"),
        ("[feed]\nmax_outbox = 10", "5:", "the outbox holds 10 KiB"),
        (
            "watch = [{ table = \"t\", dataset = true }]\n[feed]\nmode = \"off\"",
            "6:",
            "of 1 dataset have no effect",
        ),
        ("[dataset.q]\nquery = \"select 1 as id\"\nkey = \"q:${id}\"", "6:", "stands in every key"),
        ("ttl = \"1s\"\nttl_jitter = \"90%\"", "5:", "a life of 100ms (1s less 90%)"),
        ("warm = { on_start = false, limit = 5, order_by = \"id\" }", "4:", "nothing fills this dataset"),
        (
            "warm = { on_start = false }\n[invalidation]\nchannels = []\nstream = \"\"",
            "4:",
            "nothing fills this dataset",
        ),
    ];
    for (line, place, says) in cases {
        let (_, warnings) =
            load(&format!("{GOOD}{line}\n"), &[]).unwrap_or_else(|error| panic!("{line}\n{error}"));
        let is_one = warnings.matches("warning: ").count() == 1;
        assert!(
            is_one && warnings.contains(says) && warnings.contains(&format!("f.toml:{place}")),
            "{line}\n{warnings}"
        );
    }
    for line in [
        "tags = [\"a:{id}\", \"b:{id}\"]",
        "watch = [{ table = \"t\", key = { id = \"id\" } }, { table = \"t\", key = { id = \"other\" } }]",
        "warm = { limit = 5, order_by = \"id\" }\nscope = \"cached\"",
        "ttl = \"1h\"\nnegative_ttl = \"1h\"\ncompression = { codec = \"lz4\" }",
        "write.statement = \"update t set a = to_char(:a, 'HH24:MI') where id = :id\"",
        "write.statement = \"insert into t values (:id)\"",
        "[feed]\nmode = \"off\"",
        "ttl = \"1s\"",
        "ttl = \"1h\"\nttl_jitter = \"90%\"",
        // What would fill it all the same: events, changes, misses, writes, a schedule.
        "warm = { on_start = false }",
        "warm = { on_start = false }\nwatch = [{ table = \"t\", dataset = true }]\n[invalidation]\nchannels = []\nstream = \"\"",
        "warm = { on_start = false, limit = 5, order_by = \"id\" }\non_miss = \"load\"",
        "warm = { on_start = false, limit = 5, order_by = \"id\" }\nwrite.statement = \"delete from t where id = :id\"",
        "warm = { on_start = false, schedule = \"0 0 * * *\" }",
    ] {
        let (_, warnings) = load(&format!("{GOOD}{line}\n"), &[]).unwrap();
        assert_eq!(warnings, "", "{line}");
    }
    let odd = [
        ("CACHEKEEPER_REDIS_URL", "x"),
        ("CACHEKEEPER_CONFIGS", "x"),
        ("CACHEKEEPER_SEED", "1"),
        ("CACHEKEEPER_CONFIG", "x"),
    ];
    let (_, warnings) = load(GOOD, &odd).unwrap();
    for says in [
        "CACHEKEEPER_REDIS_URL",
        "did you mean CACHEKEEPER__REDIS__URL?",
        "CACHEKEEPER_CONFIGS",
        "did you mean CACHEKEEPER_CONFIG?",
    ] {
        assert!(warnings.contains(says), "{says}: {warnings}");
    }
    assert_eq!(warnings.matches("warning: ").count(), 2, "{warnings}");
    let problems = load(GOOD, &[("CACHEKEEPER__DATASET__PP__TTL", "1h")]).unwrap_err();
    assert!(problems.contains("did you mean p?"), "{problems}");
}

/// The library shares the worker's file and has no cron; a worker does not trust whoever loaded the file for it.
#[tokio::test]
async fn schedules_are_the_workers() {
    let text = format!(
        "{GOOD}warm = {{ schedule = \"61 * * * *\" }}\n\
         [postgres]\nurl = \"postgres://nobody@127.0.0.1:1/x\"\n[redis]\nurl = \"redis://127.0.0.1:1\"\n"
    );
    assert!(load(&text, &[]).unwrap_err().contains("minute \"61\""));
    let (config, _) = Config::load(Path::new("f.toml"), text, &BTreeMap::new()).unwrap();
    let warm = config.dataset("p").unwrap().warm.as_ref().unwrap();
    assert_eq!(warm.schedule.as_ref().unwrap().expression, "61 * * * *");
    let error = cachekeeper::app::Worker::start(config).await.unwrap_err().to_string();
    assert!(error.starts_with("the schedule of dataset p cannot be used: minute \"61\""), "{error}");
}

#[test]
fn all_problems_come_at_once() {
    let text = "[service]\nnamespce = \"x\"\n[redis]\nurl = 5\n[dataset.p]\nquery = \"select 1\"\nkey = \"p:{\"\nttl = \"x\"\n";
    let problems = load(text, &[("CACHEKEEPER__FEED__MODE", "sometimes"), ("CACHEKEEPER__REDDIS__URL", "x")])
        .unwrap_err();
    for part in [
        "namespce",
        "f.toml:4:7",
        "f.toml:7:10",
        "is not a duration",
        "CACHEKEEPER__FEED__MODE",
        "CACHEKEEPER__REDDIS__URL",
        "6 errors",
    ] {
        assert!(problems.contains(part), "{part}\n{problems}");
    }
}

#[test]
fn the_environment_overrides_the_file_and_names_itself() {
    let environment = [
        ("CACHEKEEPER__DATASET__P__TTL", "10m"),
        ("CACHEKEEPER__INVALIDATION__CHANNELS", "a, b"),
        ("OTHER", "x"),
    ];
    let (config, _) = load(GOOD, &environment).unwrap();
    assert_eq!(config.dataset("p").unwrap().ttl.as_secs(), 600);
    assert_eq!(config.invalidation.channels, ["a", "b"]);
    let problems = load(GOOD, &[("CACHEKEEPER__DATASET__P__BATCH", "many")]).unwrap_err();
    assert!(problems.contains("environment variable CACHEKEEPER__DATASET__P__BATCH"), "{problems}");
    let problems = load(GOOD, &[("CACHEKEEPER__DATASET__Q__TTL", "1h")]).unwrap_err();
    assert!(problems.contains("the file has no [dataset.q]"), "{problems}");
}

/// Who means to override a setting is not left with another value, without a word.
#[test]
fn variables_that_say_nothing_clear_are_named() {
    let (one, other) = ("CACHEKEEPER__DATASET__P__TTL", "cachekeeper__dataset__p__ttl");
    let problems = load(GOOD, &[(one, "10m"), (other, "20m")]).unwrap_err();
    let says = format!("{one} and {other} are two spellings of one setting, with different values");
    assert!(problems.contains(&says) && problems.contains("keep one of them"), "{problems}");
    assert!(problems.ends_with("\n1 error"), "{problems}");
    let (config, warnings) = load(GOOD, &[(one, "10m"), (other, "10m")]).unwrap();
    assert_eq!((config.dataset("p").unwrap().ttl.as_secs(), warnings.as_str()), (600, ""));

    let variable = |name: &str, value: &[u8]| {
        use std::os::unix::ffi::OsStringExt;
        (std::ffi::OsString::from(name), std::ffi::OsString::from_vec(value.to_vec()))
    };
    let bytes = [variable("OTHER", b"\xff"), variable(one, b"5m\xff")];
    let environment = cachekeeper_config::variables(bytes.into_iter());
    let problems = Config::load(Path::new("f.toml"), GOOD.to_owned(), &environment).unwrap_err();
    let problems = render(&problems);
    for says in ["the value of this variable is not UTF-8", &format!("environment variable {one}"), "1 error"]
    {
        assert!(problems.contains(says), "{says}: {problems}");
    }
}

/// A token that every user of the machine may read lets every user act.
#[test]
fn a_secret_that_everybody_may_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    // Whose way is open to everybody, as that to a directory of one's own may not be.
    let directory = Path::new("/tmp").join(format!("cachekeeper-readable-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("secret");
    std::fs::write(&file, "0123456789abcdef0123456789abcdef").unwrap();
    let set = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let name = file.display();
    let settings = [
        format!("[admin]\ntoken_file = \"{name}\""),
        format!("[admin]\nread_token_file = \"{name}\""),
        format!("[postgres]\npassword_file = \"{name}\""),
        format!("[redis]\npassword_file = \"{name}\""),
    ];
    for (of_directory, of_file, says) in [
        (0o755, 0o644, "(mode 644)"),
        (0o755, 0o604, "(mode 604)"),
        (0o755, 0o640, ""),
        // Nobody else comes there.
        (0o700, 0o644, ""),
    ] {
        set(&directory, of_directory);
        set(&file, of_file);
        for setting in &settings {
            let (_, warnings) = load(&format!("{GOOD}{setting}\n"), &[]).unwrap();
            let is_said = warnings.contains("everybody on this machine may read") && warnings.contains("5:");
            assert!(
                is_said != says.is_empty() && warnings.contains(says),
                "{of_directory:o} {of_file:o} {setting}: {warnings}"
            );
        }
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn secrets_are_never_shown() {
    let file = std::env::temp_dir().join(format!("cachekeeper-secret-{}", std::process::id()));
    std::fs::write(&file, "hunter2\n").unwrap();
    let text = format!(
        "{GOOD}[postgres]\nurl = \"postgres://u:sesame@h/d\"\npassword_file = \"{}\"\n[redis]\nurl = \"redis://:sesame@h\"\n",
        file.display()
    );
    let (config, _) = load(&text, &[]).unwrap();
    std::fs::remove_file(file).unwrap();
    assert!(config.postgres.password_file.is_some());
    let shown = format!("{:?} {:?} {}", config.postgres, config.redis, config.postgres.url.redacted());
    assert!(!shown.contains("sesame") && !shown.contains("hunter2"), "{shown}");
    // The line of the file itself may not be shown either.
    let problems = load(&format!("{GOOD}[postgres]\nurl = \"mysql://u:sesame@h/d\"\n"), &[]).unwrap_err();
    assert!(!problems.contains("sesame"), "{problems}");
}

/// Whatever is wrong, no line that may hold a secret is repeated (faults C7).
#[test]
fn no_mistake_shows_a_secret() {
    let lines = [
        "[postgres]\nurl = \"postgres://u@127.0.0.1:1/d?pasword=sesame\"",
        "[postgres]\nurl = \"postgres://u@127.0.0.1:1/d?sslpassword=sesame&sslmode=bad\"",
        "[postgres]\nurl = \"postgres://u:sesame/sesame@127.0.0.1:1/d\"",
        "[postgres]\nurl = \"postgres://u:sesame@127.0.0.1:1/d?sslmode=sesame\"",
        "[postgres]\nurl = \"postgres://u:ses@sesame@127.0.0.1:1/d\"",
        "[postgres]\nurl = \"postgres://u:sesame%zz@127.0.0.1:port/d\"",
        "[postgres]\nurl = \"host=127.0.0.1 password=sesame\"",
        "[postgres]\nurl = [\"postgres://u:sesame@127.0.0.1:1/d\"]",
        "[postgres]\npassword = \"sesame\"",
        "[postgres]\nPassword = \"sesame\"",
        "[postgres]\npassword_file = \"/nowhere/sesame\"\nurll = \"postgres://u:sesame@h/d\"",
        "[service]\npassword = \"sesame\"",
        "[redis]\npassword = \"sesame\"",
        "[redis]\nauth = \"sesame\"",
        "[redis]\nurl = \"redis://:sesame/x@127.0.0.1:1/0\"",
        "[redis]\nurl = \"redis://:sesame@127.0.0.1:1/sesame\"",
        "[redis]\nurl = \"rediss:/:sesame@127.0.0.1:1\"",
        "[redis]\nurl = \"redis://127.0.0.1:1/0?password=sesame\"",
        "[redis]\nurl = { password = \"sesame\" }",
        "[redis]\nurl = \"redis+sentinel://u:sesame@127.0.0.1:x/shop/0\"",
        "[redis]\nurl = \"redis+sentinel://u:sesame/x@127.0.0.1:1/shop/0\"",
        "[redis]\nurl = \"redis+sentinel://u:sesame%zz@127.0.0.1:1/shop/0\"",
        "[redis]\nurl = \"redis+sentinel://127.0.0.1:1/sesame sesame/0\"",
        "[redis]\nurl = \"redis+sentinel://u:sesame@127.0.0.1:1/shop/sesame\"",
        "password = \"sesame\"",
        "[secrets]\npostgres = \"sesame\"",
        "[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"sesame\"",
        "[dataset.q]\nquery = \"select 1\"\nkey = \"q:{id}\"\npassword = \"sesame\"",
        "[postgres]\nurl = \"postgres://u:sesame@127.0.0.1:1/d",
        "[postgres]\nurl = postgres://u:sesame@127.0.0.1:1/d",
        "[postgres]\nurl = \"postgres://u:sesame@127.0.0.1:1/d\" x",
        "[postgres]\nurl = \"a\"\nurl = \"postgres://u:sesame@127.0.0.1:1/d\"",
        "[postgres]\npassword = sesame",
        "[service]\npassword = 'sesame",
        "[service]\npassword = sesame\nnamespace = \"a b\"",
    ];
    let environments = [
        ("CACHEKEEPER__POSTGRES__PASSWORD", "sesame"),
        ("CACHEKEEPER__POSTGRES__PASWORD_FILE", "sesame"),
        ("CACHEKEEPER__REDIS__PASSWORD", "sesame"),
        ("CACHEKEEPER__POSTGRES__URL", "sesame"),
        ("CACHEKEEPER__POSTGRES__URL", "postgres://u:sesame/@127.0.0.1:1/d"),
        ("CACHEKEEPER__REDIS__URL", "sesame"),
        ("CACHEKEEPER__SERVICE__SECRET", "sesame"),
    ];
    let mut shown = Vec::new();
    let file = std::env::temp_dir().join(format!("cachekeeper-secrets-{}.toml", std::process::id()));
    let mut look = |what: &str, text: &str, environment: &[(&str, &str)]| {
        let (Ok((_, told)) | Err(told)) = load(text, environment);
        std::fs::write(&file, text).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cachekeeper"));
        // Servers that the text does not name are nobody's.
        let nobody = [
            ("[postgres]", "CACHEKEEPER__POSTGRES__URL", "postgres://u@127.0.0.1:1/d"),
            ("[redis]", "CACHEKEEPER__REDIS__URL", "redis://127.0.0.1:1/0"),
        ];
        let unnamed = nobody.iter().filter(|(section, _, _)| !text.contains(section));
        command.envs(unnamed.map(|(_, name, url)| (name, url)));
        command.args(["check", "-c"]).arg(&file).envs(environment.iter().copied());
        let said = command.output().unwrap();
        for told in [told, String::from_utf8(said.stdout).unwrap(), String::from_utf8(said.stderr).unwrap()] {
            if told.replace("/nowhere/sesame", "").contains("sesame") {
                shown.push(format!("{what}\n{told}"));
            }
        }
    };
    for line in lines {
        look(line, &format!("{GOOD}{line}\n"), &[]);
    }
    for variable in environments {
        look(&format!("{variable:?}"), GOOD, &[variable]);
    }
    std::fs::remove_file(&file).unwrap();
    assert!(shown.is_empty(), "{} of them are shown:\n{}", shown.len(), shown.join("\n\n"));
}

/// One wrong value is one problem: what depends on it is not told as well.
#[test]
fn a_wrong_value_has_no_followers() {
    for line in [
        "ttl = \"x\"",
        "ttl = 5",
        "batch = 0",
        "format = \"x\"",
        "rows = \"x\"",
        "compression = { codec = 5 }",
        "[redis]\nurl = \"x\"",
        "[feed]\nmode = \"x\"",
        "watch = [{ table = \"t\", tag = \"x:{\" }]",
        "watch = [{ table = \"t\", key = \"id\" }]",
        "warm = { limit = 0, order_by = \"id\" }",
        "warm = { schedule = 5, timezone = \"UTC\" }",
        "format = \"raw\"\nvalue = \"\"",
    ] {
        let problems = load(&format!("{GOOD}{line}\n"), &[]).unwrap_err();
        assert!(problems.ends_with("\n1 error") && !problems.contains("warning"), "{line}\n{problems}");
    }
}

/// A variable alone can switch on what is a table in the file.
#[test]
fn the_environment_can_add_a_section() {
    let environment =
        [("CACHEKEEPER__DATASET__P__WARM__RATE", "5"), ("CACHEKEEPER__INVALIDATION__CHANNELS", "")];
    let (config, _) = load(GOOD, &environment).unwrap();
    assert_eq!(config.dataset("p").unwrap().warm.as_ref().unwrap().rate, Some(5));
    assert!(config.invalidation.channels.is_empty());
}

#[test]
fn the_shipped_files_are_right_and_the_reference_is_what_the_table_says() {
    for file in ["config/cachekeeper.toml", "config/demo.toml"] {
        let text = std::fs::read_to_string(file).unwrap();
        let (config, warnings) = load(&text, &[]).unwrap_or_else(|problems| panic!("{file}: {problems}"));
        assert_eq!(warnings, "", "{file}");
        assert!(!config.datasets.is_empty());
    }
    let file = std::fs::read_to_string("config/cachekeeper.toml").unwrap();
    let table = cachekeeper_config::reference::reference();
    let differs = file.lines().zip(table.lines()).enumerate().find(|(_, (is, should_be))| is != should_be);
    assert!(
        file == table,
        "write it again: cachekeeper schema --toml > config/cachekeeper.toml ({differs:?})"
    );
}

/// What an editor needs, and no more than the file may hold.
#[test]
fn the_schema_says_types_words_defaults_and_ranges() {
    let schema = json_schema();
    let at =
        |path: &str| schema.pointer(path).unwrap_or_else(|| panic!("{path} is not in the schema")).clone();
    let service = "/properties/service/properties";
    assert_eq!(at(&format!("{service}/on_new_epoch/enum")), json!(["refresh", "drop"]));
    assert_eq!(at(&format!("{service}/on_new_epoch/default")), json!("refresh"));
    assert_eq!(at("/properties/feed/properties/max_rows/default"), json!(10_000));
    assert_eq!(at("/properties/feed/properties/max_rows/maximum"), json!(1_000_000));
    assert_eq!(at("/properties/invalidation/properties/channels/default"), json!(["cache:invalidation"]));
    assert_eq!(at("/properties/dataset/additionalProperties/required"), json!(["query", "key"]));
    let warm = "/properties/dataset/additionalProperties/properties/warm/properties";
    assert_eq!(at(&format!("{warm}/on_start/default")), json!(true));
    let description = at(&format!("{service}/shutdown_timeout/description"));
    assert!(description.as_str().unwrap().ends_with("1s to 10m."), "{description}");
    // What a dataset inherits has its default in [defaults].
    let ttl = "/properties/dataset/additionalProperties/properties/ttl";
    assert!(at(ttl).get("default").is_none());
    assert_eq!(at("/properties/defaults/properties/ttl/default"), json!("1h"));
    let mut open = Vec::new();
    find_open_tables(&schema, "", &mut open);
    assert!(open.is_empty(), "{open:?} take any key");
}

fn find_open_tables(schema: &serde_json::Value, path: &str, open: &mut Vec<String>) {
    let Some(fields) = schema.as_object() else { return };
    if fields.contains_key("properties") && fields.get("additionalProperties") != Some(&json!(false)) {
        open.push(path.to_owned());
    }
    for (name, value) in fields {
        find_open_tables(value, &format!("{path}/{name}"), open);
    }
}
