//! `ringfence trust` as people and scripts meet it: each change, what it refuses, and what a crash leaves.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// Three public keys: two of ed25519, and a point of small order.
const SUPPLIER: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
const OTHER: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAPUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=\n-----END PUBLIC KEY-----\n";
const WEAK: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n-----END PUBLIC KEY-----\n";

/// The files of the home that say what is trusted.
const FILES: [&str; 3] = ["home/root.pub", "home/trust.floor", "home/trust.json"];

/// A folder for a home, a configuration and the source of a model.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, text) in [
            ("passphrase", "correct horse"),
            ("supplier.pem", SUPPLIER),
            ("other.pem", OTHER),
            ("weak.pem", WEAK),
        ] {
            fs::write(place.path(name), text).unwrap();
        }
        let user: &[&str] = if rustix::process::geteuid().is_root() { &["--user", "nobody"] } else { &[] };
        place.operate(&[&["init"], user].concat()).ok();
        place
    }

    fn with(models: &[&str]) -> Self {
        let place = Self::new();
        models.iter().for_each(|name| place.add(name));
        place
    }

    fn add(&self, name: &str) {
        let source = self.path("source").join(name);
        support::copy_tiny(&source);
        self.operate(&["model", "add", source.to_str().unwrap(), "--accept-unverified-source"]).ok();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command.arg("--home").arg(self.path("home")).arg("--json").args(arguments).stdin(Stdio::null());
        // `model list` and `model verify` have no option for it.
        command.env("XDG_CONFIG_HOME", self.path("none"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran(self.command(arguments).output().unwrap())
    }

    /// With the configuration folder only.
    fn look(&self, arguments: &[&str]) -> Ran {
        Ran(self.command(arguments).arg("--config").arg(self.path("config")).output().unwrap())
    }

    /// With the operator's keys.
    fn operate(&self, arguments: &[&str]) -> Ran {
        let mut command = self.command(arguments);
        command
            .arg("--config")
            .arg(self.path("config"))
            .arg("--passphrase-file")
            .arg(self.path("passphrase"));
        Ran(command.output().unwrap())
    }

    fn show(&self) -> Value {
        self.look(&["trust", "show"]).json()
    }

    fn version(&self) -> u64 {
        self.show()["version"].as_u64().unwrap()
    }

    /// The model's refusal, or its signer.
    fn judge(&self, name: &str) -> Result<String, String> {
        let listed = self.run(&["model", "list"]).json();
        let models = listed["models"].as_array().unwrap();
        let model = models.iter().find(|model| model["name"] == name).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        match &model["refusal"]["code"] {
            Value::Null => Ok(text(&model["signer"])),
            code => Err(text(code)),
        }
    }

    /// Everything that a command may write, by path.
    fn everything(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.path("home"), self.path("config")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path)
                } else {
                    drop(files.insert(path.clone(), fs::read(&path).unwrap()))
                }
            }
        }
        files
    }

    fn save(&self, names: &[&str]) -> Vec<(PathBuf, Vec<u8>)> {
        names.iter().map(|name| (self.path(name), fs::read(self.path(name)).unwrap())).collect()
    }
}

fn put_back(files: &[(PathBuf, Vec<u8>)]) {
    files.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
}

struct Ran(Output);

impl Ran {
    fn ok(self) -> String {
        assert!(self.0.status.success(), "{:?}", self.0);
        String::from_utf8(self.0.stdout).unwrap()
    }

    fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// Ended with this exit code, the error code and, somewhere in its words, this.
    fn failed(self, exit: i32, code: &str, says: &str) {
        let text = String::from_utf8(self.0.stdout).unwrap() + str::from_utf8(&self.0.stderr).unwrap();
        assert_eq!(self.0.status.code(), Some(exit), "{text}");
        assert!(
            text.contains(&format!("\"code\":\"{code}\"")) && text.contains(says),
            "{code}, {says}: {text}"
        );
    }
}

#[test]
fn init_makes_version_1_and_show_says_what_is_in_it() {
    let place = Place::new();
    let shown = place.show();
    assert_eq!(
        (&shown["version"], &shown["floor"], &shown["expired"]),
        (&json!(1), &json!(1), &json!(false))
    );
    let key = &shown["keys"][0];
    assert_eq!(
        (&key["alg"], &key["models"], &key["state"]),
        (&json!("ed25519"), &json!(["*"]), &json!("valid"))
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command
        .arg("--home")
        .arg(place.path("home"))
        .args(["trust", "show", "--config"])
        .arg(place.path("config"));
    let text = Ran(command.output().unwrap()).ok();
    for part in
        ["version  1 (none below 1 counts)", " days left)", &key["id"].as_str().unwrap()[..16], "valid"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn a_key_is_added_with_its_scope_and_revoked_by_the_begin_of_its_id() {
    let place = Place::new();
    let file = place.path("supplier.pem");
    let file = file.to_str().unwrap();
    let added = place
        .operate(&[
            "trust",
            "key",
            "add",
            file,
            "--models",
            "whisper-*,tiny",
            "--not-before",
            "2027-01-01",
            "--not-after",
            "2028-01-01",
        ])
        .json();
    assert_eq!((&added["version"], &added["added"]["models"]), (&json!(2), &json!(["whisper-*", "tiny"])));
    assert_eq!(
        (&added["added"]["not_before"], &added["added"]["not_after"]),
        (&json!(1_798_761_600), &json!(1_830_297_600))
    );
    assert_eq!(place.show()["keys"][1], added["added"]);
    let id = added["added"]["id"].as_str().unwrap();
    assert_eq!(place.operate(&["trust", "key", "revoke", &id[..8]]).json()["revoked_key"], id);
    assert_eq!((&place.show()["keys"][1]["state"], &place.show()["floor"]), (&json!("revoked"), &json!(3)));
    place.operate(&["trust", "key", "revoke", id]).failed(1, "key_revoked", "already");
    place.operate(&["trust", "key", "add", file, "--models", "*"]).failed(1, "key_revoked", "stays revoked");
}

#[test]
fn what_is_refused_changes_nothing() {
    let place = Place::with(&["tiny"]);
    let path = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let (supplier, weak, missing, passphrase) =
        (path("supplier.pem"), path("weak.pem"), path("missing.pem"), path("passphrase"));
    place.operate(&["trust", "key", "add", &supplier, "--models", "*"]).ok();
    let before = place.everything();
    let check = |arguments: &[&str], exit, code, says| {
        place.operate(&[&["trust"], arguments].concat()).failed(exit, code, says);
        assert_eq!(place.everything(), before, "{arguments:?}");
    };
    check(&["key", "add", &supplier, "--models", "*"], 1, "key_exists", "may sign already");
    check(&["key", "add", &weak, "--models", "*"], 1, "key_refused", "weak");
    check(&["key", "add", &missing, "--models", "*"], 1, "io_error", "missing.pem");
    check(&["key", "add", &passphrase, "--models", "*"], 1, "key_refused", "openssl");
    check(
        &["key", "add", &supplier, "--models", "*", "--not-after", "2020-01-01"],
        2,
        "usage",
        "never be valid",
    );
    let many = (0..65).map(|n| format!("m{n}")).collect::<Vec<_>>().join(",");
    let other = path("other.pem");
    check(&["key", "add", &other, "--models", &many], 1, "trust_refused", "keys[2].models");
    check(&["key", "revoke", "00000000"], 1, "key_unknown", "trust show");
    check(&["digest", "revoke", "other"], 1, "model_unknown", "model list");
    check(&["digest", "revoke", "Not A Name"], 2, "usage", "neither a digest");
    for arguments in [
        &["key", "add", &supplier][..],
        &["key", "add", &supplier, "--models", ""],
        &["key", "add", &supplier, "--models", "../*"],
        &["key", "add", &supplier, "--models", "*", "--days", "0"],
        &["key", "add", &supplier, "--models", "*", "--days", "5", "--not-after", "2030-01-01"],
        &["key", "revoke", "0123456"],
        &["renew", "--days", "36501"],
        &["rotate", "--root", "--keep-old"],
    ] {
        let ran = place.operate(&[&["trust"], arguments].concat());
        assert_eq!(ran.0.status.code(), Some(2), "{arguments:?}: {:?}", ran.0);
        assert_eq!(place.everything(), before, "{arguments:?}");
    }
    fs::write(place.path("passphrase"), "wrong").unwrap();
    place.operate(&["trust", "renew"]).failed(1, "passphrase_wrong", "root.key");
}

#[test]
fn a_revoked_package_and_the_packages_of_a_revoked_key_are_refused() {
    let place = Place::with(&["one", "two"]);
    let revoked = place.operate(&["trust", "digest", "revoke", "one"]).json();
    assert_eq!((place.judge("one"), place.judge("two").is_ok()), (Err("digest_revoked".to_owned()), true));
    place.run(&["model", "verify", "one"]).failed(3, "digest_revoked", "model remove one");
    let digest = revoked["revoked_digest"].as_str().unwrap();
    place.operate(&["trust", "digest", "revoke", digest]).failed(1, "digest_revoked", "already");
    place.operate(&["trust", "digest", "revoke", "one"]).failed(1, "digest_revoked", "already");
    let id = place.show()["keys"][0]["id"].as_str().unwrap().to_owned();
    place.operate(&["trust", "key", "revoke", &id]).ok();
    assert_eq!(place.judge("two"), Err("key_revoked".to_owned()));
    place.run(&["model", "verify", "two"]).failed(3, "key_revoked", "model sign two");
}

#[test]
fn an_older_trust_file_is_refused_by_its_floor_and_a_lowered_floor_is_noticed() {
    let place = Place::with(&["tiny"]);
    let old = place.save(&FILES);
    place.operate(&["trust", "digest", "revoke", "tiny"]).ok();
    let new = place.save(&FILES);
    put_back(&old[2..]);
    place.run(&["model", "verify"]).failed(3, "trust_rolled_back", "trust restore");
    // Floor and file together: only who has the operator's copy can tell.
    put_back(&old);
    assert!(place.judge("tiny").is_ok());
    for arguments in
        [&["trust", "renew"][..], &["trust", "rotate"], &["model", "sign", "tiny"], &["model", "add", "x"]]
    {
        let code =
            if arguments[1] == "add" { (2, "usage", "") } else { (3, "trust_rolled_back", "trust restore") };
        place.operate(arguments).failed(code.0, code.1, code.2);
    }
    place.look(&["trust", "show"]).failed(3, "trust_rolled_back", "version 1 is older than version 2");
    let mut command = place.command(&["model", "list"]);
    fs::create_dir_all(place.path("usual")).unwrap();
    std::os::unix::fs::symlink(place.path("config"), place.path("usual/ringfence")).unwrap();
    if !rustix::process::geteuid().is_root() {
        let ran = Ran(command.env("XDG_CONFIG_HOME", place.path("usual")).output().unwrap());
        ran.failed(3, "trust_rolled_back", "trust restore");
    }
    // A floor alone that is lowered under the newest file.
    put_back(&new);
    put_back(&old[1..2]);
    place.look(&["trust", "show"]).failed(3, "trust_rolled_back", "trust restore");
    place.look(&["trust", "restore"]).ok();
    assert_eq!((place.version(), place.save(&FILES)), (2, new));
}

#[test]
fn without_a_floor_nothing_holds_and_the_copy_brings_everything_back() {
    let place = Place::with(&["tiny"]);
    place.operate(&["trust", "renew"]).ok();
    let good = place.save(&FILES);
    for (name, bad, code) in [
        ("trust.floor", None, "trust_missing"),
        ("trust.floor", Some("x"), "trust_floor_invalid"),
        ("trust.floor", Some(""), "trust_floor_invalid"),
        ("trust.floor", Some("18446744073709551615\n"), "trust_rolled_back"),
        ("trust.floor", Some("111111111111111111111111111"), "trust_floor_invalid"),
        ("trust.json", None, "trust_missing"),
        ("trust.json", Some("{}"), "trust_invalid"),
        ("root.pub", Some(SUPPLIER), "trust_invalid"),
        ("root.pub", Some("x"), "root_key_invalid"),
    ] {
        let path = place.path("home").join(name);
        match bad {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        place.run(&["model", "verify"]).failed(3, code, "trust restore");
        place.operate(&["trust", "renew"]).failed(3, code, "trust restore");
        place.look(&["trust", "restore"]).ok();
        assert_eq!(place.save(&FILES), good, "{name} {bad:?}");
    }
}

#[test]
fn restore_does_not_bring_back_what_is_older_than_the_home() {
    let place = Place::new();
    let copy = place.save(&["config/trust.copy"]);
    place.operate(&["trust", "renew"]).ok();
    put_back(&copy);
    place.look(&["trust", "restore"]).failed(1, "trust_copy_old", "version 2 is newer");
    place.operate(&["trust", "renew"]).ok();
    assert_eq!((place.version(), place.look(&["trust", "restore"]).json()["version"].clone()), (3, json!(3)));
}

#[test]
fn a_copy_that_is_missing_damaged_or_another_homes_is_said_to_be_so() {
    let (place, another) = (Place::new(), Place::new());
    let copy = place.path("config/trust.copy");
    let good = fs::read(&copy).unwrap();
    fs::write(&copy, fs::read(another.path("config/trust.copy")).unwrap()).unwrap();
    place.look(&["trust", "restore"]).failed(2, "usage", "is for the home");
    place.operate(&["trust", "renew"]).failed(1, "root_key_wrong", "");
    fs::write(&copy, "{}").unwrap();
    place.look(&["trust", "show"]).failed(3, "trust_copy_invalid", "copy that you keep elsewhere");
    fs::write(&copy, vec![b' '; 3 << 20]).unwrap();
    place.look(&["trust", "show"]).failed(3, "trust_copy_invalid", "longer than");
    fs::remove_file(&copy).unwrap();
    place.look(&["trust", "restore"]).failed(1, "trust_copy_missing", "copy that you keep elsewhere");
    place.operate(&["trust", "renew"]).failed(1, "trust_copy_missing", "copy that you keep elsewhere");
    fs::write(&copy, good).unwrap();
    place.operate(&["trust", "renew"]).ok();
}

#[test]
fn a_change_that_was_cut_off_anywhere_is_finished_by_restore() {
    let place = Place::with(&["tiny"]);
    let old = place.save(&FILES);
    place.operate(&["trust", "digest", "revoke", "tiny"]).ok();
    let new = place.save(&FILES);
    let next = place.path("home/trust.next");
    // After the copy; after trust.next; after the floor.
    put_back(&old);
    place.look(&["trust", "restore"]).ok();
    assert_eq!(place.save(&FILES), new);
    put_back(&old);
    fs::write(&next, &new[2].1).unwrap();
    assert!(place.judge("tiny").is_ok(), "before the floor is raised the old file counts");
    place.look(&["trust", "restore"]).ok();
    put_back(&old);
    fs::write(&next, &new[2].1).unwrap();
    put_back(&new[1..2]);
    assert_eq!(
        place.judge("tiny"),
        Err("digest_revoked".to_owned()),
        "the new file counts before it has its name"
    );
    assert_eq!(place.version(), 2);
    place.look(&["trust", "restore"]).ok();
    assert_eq!((place.save(&FILES), next.exists()), (new, false));
}

#[test]
fn rotate_signs_again_what_holds_and_revokes_the_old_key() {
    let place = Place::with(&["one", "two", "bad"]);
    fs::write(place.path("home/models/bad/config.json"), "changed").unwrap();
    let old = place.judge("one").unwrap();
    let rotated = place.operate(&["trust", "rotate"]).json();
    assert_eq!((&rotated["old_key"], &rotated["resigned"]), (&json!(old), &json!(["one", "two"])));
    assert_eq!((&rotated["left"][0]["name"], &rotated["old_key_revoked"]), (&json!("bad"), &json!(true)));
    let new = rotated["new_key"].as_str().unwrap();
    assert_ne!(new, old);
    for name in ["one", "two"] {
        assert_eq!(place.judge(name).as_deref(), Ok(new));
    }
    assert_eq!(place.judge("bad"), Err("key_revoked".to_owned()));
    let keys = place.show()["keys"].clone();
    assert_eq!(
        (&keys[0]["state"], &keys[1]["state"], &keys[1]["models"]),
        (&json!("revoked"), &json!("valid"), &json!(["*"]))
    );
    assert!(!place.path("config/operator.key.new").exists());
    // The new key is the operator's now.
    place.add("three");
    assert_eq!(place.judge("three").as_deref(), Ok(new));
}

#[test]
fn rotate_can_leave_the_old_key_valid_and_keeps_one_old_key_only() {
    let place = Place::with(&["one"]);
    let key = fs::read(place.path("config/operator.key")).unwrap();
    place.operate(&["trust", "rotate", "--keep-old"]).ok();
    assert_eq!(fs::read(place.path("config/operator.key.old")).unwrap(), key);
    assert_eq!(place.show()["keys"][0]["state"], "valid");
    let before = place.everything();
    place.operate(&["trust", "rotate", "--keep-old"]).failed(1, "key_kept", "move it away");
    assert_eq!(place.everything(), before);
}

#[test]
fn a_rotation_that_was_cut_off_goes_on_where_it_was() {
    let place = Place::with(&["one", "two"]);
    let old_key = place.save(&["config/operator.key"]);
    let one_of_old = place.save(&["home/models/one.oms/ed25519.sig"]);
    let new =
        place.operate(&["trust", "rotate", "--keep-old"]).json()["new_key"].as_str().unwrap().to_owned();
    fs::remove_file(place.path("config/operator.key.old")).unwrap();
    // As after the second package: both keys count, one package has each.
    fs::rename(place.path("config/operator.key"), place.path("config/operator.key.new")).unwrap();
    put_back(&old_key);
    put_back(&one_of_old);
    let rotated = place.operate(&["trust", "rotate"]).json();
    assert_eq!((&rotated["new_key"], &rotated["resigned"]), (&json!(new), &json!(["one"])));
    // As after the revocation.
    fs::rename(place.path("config/operator.key"), place.path("config/operator.key.new")).unwrap();
    put_back(&old_key);
    let version = place.version();
    let rotated = place.operate(&["trust", "rotate"]).json();
    assert_eq!(
        (&rotated["new_key"], &rotated["resigned"], &rotated["version"]),
        (&json!(new), &json!([]), &json!(version))
    );
    assert_eq!((place.judge("one"), place.judge("two")), (Ok(new.clone()), Ok(new)));
}

#[test]
fn a_new_root_key_signs_the_next_version_and_the_old_one_counts_no_more() {
    let place = Place::with(&["tiny"]);
    let root = place.show()["root"].clone();
    let old = place.save(&["home/trust.json", "home/trust.floor"]);
    let rotated = place.operate(&["trust", "rotate", "--root"]).json();
    let shown = place.show();
    assert_ne!(shown["root"], root);
    assert_eq!(
        (&shown["root"], &shown["version"], &shown["floor"]),
        (&rotated["new_root"], &json!(2), &json!(2))
    );
    assert!(place.judge("tiny").is_ok() && !place.path("config/root.key.new").exists());
    put_back(&old);
    place.run(&["model", "verify"]).failed(3, "trust_invalid", "another root key");
    place.look(&["trust", "restore"]).ok();
    place.operate(&["trust", "renew"]).ok();
    assert_eq!(place.version(), 3);
}

#[test]
fn a_new_root_key_that_was_cut_off_is_finished_by_the_same_command() {
    let place = Place::with(&["tiny"]);
    let old = place.save(&FILES);
    let old_key = place.save(&["config/root.key"]);
    let new_root = place.operate(&["trust", "rotate", "--root"]).json()["new_root"].clone();
    let new = place.save(&FILES);
    let undo = || {
        fs::rename(place.path("config/root.key"), place.path("config/root.key.new")).unwrap();
        put_back(&old_key);
    };
    let finish = || {
        assert_eq!(place.operate(&["trust", "rotate", "--root"]).json()["new_root"], new_root);
        assert_eq!((place.save(&FILES), place.show()["root"].clone()), (new.clone(), new_root.clone()));
    };
    // Cut off before the key had its name.
    undo();
    place.operate(&["trust", "renew"]).failed(1, "root_key_wrong", "rotate --root");
    finish();
    // Cut off before the home was written: it goes on with the old root, and who has the copy says so.
    undo();
    put_back(&old);
    assert!(place.judge("tiny").is_ok());
    place.look(&["trust", "show"]).failed(3, "trust_root_changed", "rotate --root");
    finish();
    // Cut off between root.pub and trust.json.
    undo();
    put_back(&old);
    fs::write(place.path("home/trust.next"), &new[2].1).unwrap();
    put_back(&new[..1]);
    assert!(place.judge("tiny").is_ok());
    assert_eq!(place.run(&["model", "list"]).0.status.code(), Some(0));
    finish();
    // Cut off before anything was signed: the key that was made is the one that is used.
    let made = place.save(&["config/root.key"]);
    fs::rename(place.path("config/root.key"), place.path("config/root.key.new")).unwrap();
    put_back(&made);
    fs::remove_file(place.path("config/root.key.new")).unwrap();
    place.operate(&["trust", "renew"]).ok();
}

#[test]
fn renew_gives_the_file_and_the_operators_key_a_new_end() {
    let place = Place::new();
    let before = place.show();
    let renewed = place.operate(&["trust", "renew", "--days", "30"]).json();
    let after = place.show();
    assert!(after["expires"].as_u64() < before["expires"].as_u64());
    assert_eq!((&renewed["expires"], &after["keys"][0]["not_after"]), (&after["expires"], &after["expires"]));
    assert_eq!(renewed["renewed_key"], after["keys"][0]["id"]);
    let id = after["keys"][0]["id"].as_str().unwrap();
    place.operate(&["trust", "key", "revoke", id]).ok();
    let renewed = place.operate(&["trust", "renew"]).json();
    assert_eq!((&renewed["renewed_key"], &renewed["version"]), (&Value::Null, &json!(4)));
}

#[test]
fn two_changes_at_once_lose_none() {
    let place = Place::new();
    let folder = fs::OpenOptions::new().read(true).open(place.path("config")).unwrap();
    rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive).unwrap();
    for arguments in [&["trust", "renew"][..], &["trust", "rotate"], &["trust", "rotate", "--root"]] {
        place.operate(arguments).failed(1, "trust_busy", "try again");
    }
    place.look(&["trust", "restore"]).failed(1, "trust_busy", "try again");
    drop(folder);
    let (one, other) = (place.path("supplier.pem"), place.path("other.pem"));
    let add =
        |file: &PathBuf| place.operate(&["trust", "key", "add", file.to_str().unwrap(), "--models", "*"]);
    let done = std::thread::scope(|scope| {
        let first = scope.spawn(|| add(&one).0.status.success());
        usize::from(add(&other).0.status.success()) + usize::from(first.join().unwrap())
    });
    assert!(done > 0);
    assert_eq!(place.show()["keys"].as_array().unwrap().len(), 1 + done);
    assert_eq!(place.version(), 1 + done as u64);
}
