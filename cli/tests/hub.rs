//! `ringfence model add hf:OWNER/NAME@REVISION` through the hub's own client, against a server here that answers as the hub.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves a folder as the repository `owner/tiny`; ends with the test.
fn serve(folder: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let folder = folder.clone();
            thread::spawn(move || answer(stream.unwrap(), &folder));
        }
    });
    address
}

fn answer(mut stream: TcpStream, folder: &Path) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> =
        lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
    let path = request.split(' ').nth(1).unwrap().to_owned();
    if path == "/api/models/owner/tiny/revision/main" {
        let siblings: Vec<Value> =
            names(folder, folder).iter().map(|name| json!({"rfilename": name})).collect();
        let info = json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return reply(&mut stream, "200 OK", "", info.as_bytes());
    }
    let Some(bytes) =
        path.strip_prefix("/owner/tiny/resolve/main/").and_then(|name| fs::read(folder.join(name)).ok())
    else {
        return reply(&mut stream, "404 Not Found", "", b"no such file");
    };
    let range = headers.iter().find_map(|line| line.strip_prefix("range: bytes="));
    let (from, to) = range.map_or((0, bytes.len()), |range| span(range, bytes.len()));
    let more = format!(
        "etag: \"{:x}\"\r\nx-repo-commit: {COMMIT}\r\naccept-ranges: bytes\r\ncontent-range: bytes {from}-{}/{}\r\n",
        bytes.len(),
        to.max(1) - 1,
        bytes.len()
    );
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    reply(&mut stream, status, &more, &bytes[from..to]);
}

fn span(range: &str, length: usize) -> (usize, usize) {
    let (from, to) = range.trim().split_once('-').unwrap();
    let to = to.parse::<usize>().map_or(length, |last| (last + 1).min(length));
    (from.parse::<usize>().unwrap().min(to), to)
}

fn reply(stream: &mut TcpStream, status: &str, more: &str, body: &[u8]) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{more}content-length: {length}\r\nconnection: close\r\n\r\n");
    // A client that has seen enough hangs up.
    drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)));
}

fn names(root: &Path, folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(names(root, &path)),
            false => found.push(path.strip_prefix(root).unwrap().display().to_string()),
        }
    }
    found
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.0.path().join("passphrase"), "correct horse").unwrap();
        let user: &[&str] = if rustix::process::geteuid().is_root() { &["--user", "nobody"] } else { &[] };
        let made = place.run("http://127.0.0.1:9", &[&["init"], user].concat());
        assert!(made.status.success(), "{made:?}");
        place
    }

    fn run(&self, endpoint: &str, arguments: &[&str]) -> Output {
        let folder = self.0.path();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command
            .args(arguments)
            .arg("--home")
            .arg(folder.join("home"))
            .arg("--config")
            .arg(folder.join("config"));
        command.arg("--passphrase-file").arg(folder.join("passphrase"));
        command
            .env("HF_ENDPOINT", endpoint)
            .env("XDG_CACHE_HOME", folder.join("cache"))
            .env_remove("HF_HOME");
        command.stdin(Stdio::null()).output().unwrap()
    }
}

#[test]
fn a_repository_of_the_hub_is_fetched_converted_and_marked() {
    let source = tempfile::tempdir().unwrap();
    support::copy_tiny(source.path());
    fs::write(source.path().join("pytorch_model.bin"), "never fetched").unwrap();
    let (place, endpoint) = (Place::new(), serve(source.path().to_owned()));
    let add = |more: &[&str]| {
        place.run(&endpoint, &[&["model", "add", "hf:owner/tiny@main", "--json"], more].concat())
    };
    assert_eq!(add(&[]).status.code(), Some(2), "nobody has pinned it");
    let added = add(&["--accept-unverified-source"]);
    assert!(added.status.success(), "{added:?}");
    let added: Value = serde_json::from_slice(&added.stdout).unwrap();
    let (model, manifest) = (&added["added"][0], &added["added"][0]["manifest"]);
    assert_eq!((&model["name"], &model["verified"]), (&json!("tiny"), &json!(true)));
    assert_eq!(manifest["source"], format!("hf:owner/tiny@main, commit {COMMIT}"));
    assert_eq!(manifest["unverified_source"], json!(true));
    assert!(!names(place.0.path(), place.0.path()).iter().any(|name| name.contains("pytorch")));
}

#[test]
fn a_repository_that_is_not_there_is_a_failure_that_says_what_to_do() {
    let source = tempfile::tempdir().unwrap();
    let (place, endpoint) = (Place::new(), serve(source.path().to_owned()));
    let added = place
        .run(&endpoint, &["model", "add", "hf:owner/other@main", "--accept-unverified-source", "--json"]);
    let text = String::from_utf8([added.stdout, added.stderr].concat()).unwrap();
    assert_eq!(added.status.code(), Some(1), "{text}");
    assert!(text.contains("fetch_failed") && text.contains("hf:owner/other@main"), "{text}");
}
