//! `pgtenant top`: a table without a terminal, a screen within one, and the terminal as it was afterwards.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::harness::stage::Stage;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pgtenant");

#[tokio::test]
async fn without_a_terminal_it_prints_a_table_once() {
    let stage = Stage::new(&[]).await;
    let _client = stage.client().await;
    let url = format!("http://{}", stage.proxy.http_address());
    let run = async |arguments: &[&str]| {
        let output = Command::new(PROGRAM).arg("top").args(arguments).output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.success(), text)
    };
    let (good, text) = run(&["--url", &url]).await;
    assert!(good && text.contains("TENANT") && text.contains("\nacme "), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    let (good, text) = run(&["--once", "--sort", "clients", "--filter", "nobody", "--url", &url]).await;
    assert!(good && !text.contains("acme"), "{text}");
    let (good, text) = run(&["--url", "http://127.0.0.1:1"]).await;
    assert!(!good && text.contains("no answer from http://127.0.0.1:1"), "{text}");
    assert!(!run(&["--sort", "size", "--url", &url]).await.0);
}

#[tokio::test]
async fn in_a_terminal_it_watches_until_q() {
    let stage = Stage::new(&[]).await;
    let command = format!("stty cols 100 rows 20; {PROGRAM} top --url http://{}", stage.proxy.http_address());
    // util-linux' script gives it a terminal of its own.
    let mut child = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut shown = Vec::new();
    let text = |shown: &[u8]| String::from_utf8_lossy(shown).into_owned();
    let reading = async {
        while !text(&shown).contains("acme") {
            assert!(output.read_buf(&mut shown).await.unwrap() > 0, "{}", text(&shown));
        }
        input.write_all(b"h").await.unwrap();
        while !text(&shown).contains("turns the order around") {
            assert!(output.read_buf(&mut shown).await.unwrap() > 0, "{}", text(&shown));
        }
        input.write_all(b"q").await.unwrap();
        output.read_to_end(&mut shown).await.unwrap();
        child.wait().await.unwrap()
    };
    let status = tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap();
    assert!(status.success());
    let shown = text(&shown);
    let (enters, leaves) = (shown.find("\x1b[?1049h").unwrap(), shown.rfind("\x1b[?1049l").unwrap());
    assert!(enters < leaves && shown.rfind("\x1b[?25h").unwrap() > leaves, "the cursor is back: {shown:?}");
}
