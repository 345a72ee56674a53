//! The demonstration, as a newcomer starts it: a small shop for a few seconds.

use std::process::{Command, Output, Stdio};

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cachekeeper"));
    command.arg("demo").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A link under a name that can be foreseen is what another user of the machine would plant: whoever writes there, writes elsewhere.
#[test]
fn the_demo_survives_its_leader_ends_in_agreement_and_follows_no_planted_link() {
    let folder = std::env::temp_dir();
    let precious = folder.join(format!("cachekeeper-precious-{:016x}", rand::random::<u64>()));
    std::fs::write(&precious, "as it was").unwrap();
    let child = demo(&["--for", "8s", "--products", "2000"]).spawn().unwrap();
    let planted = folder.join(format!("cachekeeper-demo-{}.toml", child.id()));
    std::os::unix::fs::symlink(&precious, &planted).unwrap();
    let output = child.wait_with_output().unwrap();
    let kept = std::fs::read_to_string(&precious);
    drop(std::fs::remove_file(&planted));
    drop(std::fs::remove_file(&precious));

    let text = told(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in [
        "filling the shop: 2000 products, 3000 reviews, 4000 stocks, 400 users",
        "the page of the second: http://127.0.0.1:",
        "  product: 2000 entries looked at, 2000 right",
        "with -9, which followed the changes",
        " took over after ",
        "cachekeeper explain product:42\n  The entry is what Postgres says now.\n",
        "With their server failed\n0 reads and 0 writes.\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(text.ends_with("\nRedis and Postgres agree\nworker stopped\n"), "{text}");
    assert_eq!(kept.unwrap(), "as it was");
}

#[test]
fn a_demo_that_cannot_begin_says_why() {
    for (arguments, path, code, said) in [
        (["--for", "soon"], None, 2, "error: --for: "),
        (["--products", "5"], None, 2, "5 is not in 1000..=1000000"),
        (["--for", "1s"], Some("/nowhere"), 69, "error: "),
    ] {
        let mut command = demo(&arguments);
        path.map(|path| command.env("PATH", path));
        let output = command.output().unwrap();
        let text = told(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(said), "{arguments:?}: {text}");
    }
}
