//! Python's `model_signing` is the other side: what it signs with P-256 is taken here, what is signed here it verifies, and
//! neither takes what was changed.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod support;

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::Home;

/// A home, a folder of the tiny model, and a fresh P-256 key.
struct Place {
    home: Home,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { home: Home::new(), folder: tempfile::tempdir().unwrap() };
        let source = place.path("tiny");
        fs::create_dir_all(source.join("1_Pooling")).unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-bert");
        for file in
            ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "tokenizer.json"]
        {
            fs::copy(from.join(file), source.join(file)).unwrap();
        }
        fs::write(source.join("model.py"), "import os").unwrap();
        let make = "from cryptography.hazmat.primitives.asymmetric import ec\n\
                    from cryptography.hazmat.primitives import serialization as s\n\
                    import sys\n\
                    key = ec.generate_private_key(ec.SECP256R1())\n\
                    open(sys.argv[1], 'wb').write(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))\n\
                    open(sys.argv[2], 'wb').write(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))\n";
        let made = python(&["-c", make, &place.text("key.pem"), &place.text("pub.pem")]);
        assert!(made.status.success(), "{made:?}");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `model_signing sign` or `verify` with the key, over this folder and signature.
    fn model_signing(&self, action: &str, folder: &str, signature: &str) -> bool {
        let key = match action {
            "sign" => ["--private_key".to_owned(), self.text("key.pem")],
            _ => ["--public_key".to_owned(), self.text("pub.pem")],
        };
        let [option, file] = &key;
        let fixed = ["-m", "model_signing", action, "key", "--no-ignore-git-paths", option, file];
        python(&[&fixed[..], &["--signature", signature, folder]].concat()).status.success()
    }

    /// Adds the folder under its bundle.
    fn add(&self) -> Output {
        let (folder, bundle) = (self.text("tiny"), self.text("tiny.sig"));
        self.home.cli(&["model", "add", &folder, "--name", "tiny", "--bundle", &bundle, "--json"])
    }

    fn trust(&self) {
        self.home.cli_ok(&["trust", "key", "add", &self.text("pub.pem"), "--models", "tiny*"]);
    }
}

fn python(arguments: &[&str]) -> Output {
    let python = std::env::var("RINGFENCE_PYTHON").expect("set by `make test`: a Python with model-signing");
    Command::new(python).args(arguments).output().unwrap()
}

fn says(output: &Output, code: &str) {
    let text = String::from_utf8([&output.stdout[..], &output.stderr[..]].concat()).unwrap();
    assert!(!output.status.success() && text.contains(code), "{code}: {text}");
}

#[test]
fn what_python_signs_is_taken_if_its_key_is_trusted() {
    let place = Place::new();
    assert!(place.model_signing("sign", &place.text("tiny"), &place.text("tiny.sig")));
    says(&place.add(), "unknown_signer");
    place.trust();
    let added = place.add();
    assert!(added.status.success(), "{added:?}");
    let manifest = serde_json::from_slice::<Value>(&added.stdout).unwrap()["added"][0]["manifest"].clone();
    assert_eq!(manifest["source_signer"].as_str().unwrap().len(), 64);
    assert_ne!(manifest["unverified_source"], json!(true));
    fs::write(place.path("tiny/model.py"), "import sys").unwrap();
    says(&place.add(), "digest_mismatch");
    fs::remove_file(place.path("tiny/model.py")).unwrap();
    says(&place.add(), "file_missing");
    fs::write(place.path("tiny/model.py"), "import os").unwrap();
    fs::write(place.path("tiny/planted.py"), "import os").unwrap();
    says(&place.add(), "file_unlisted");
}

#[test]
fn what_is_signed_here_python_verifies() {
    let place = Place::new();
    place.home.add_tiny("tiny");
    let sign = ["model", "sign", "tiny", "--p256-key", &place.text("key.pem")];
    says(&place.home.cli(&sign), "which the trust file does not list");
    place.trust();
    place.home.cli_ok(&sign);
    let models = place.home.path().join("models");
    let (folder, bundle) = (models.join("tiny"), models.join("tiny.oms/p256.sig"));
    let (folder, bundle) = (folder.to_str().unwrap(), bundle.to_str().unwrap());
    assert!(place.model_signing("verify", folder, bundle));
    place.home.cli_ok(&["model", "verify", "tiny"]);
    let config = models.join("tiny/config.json");
    fs::write(&config, fs::read_to_string(&config).unwrap() + " ").unwrap();
    assert!(!place.model_signing("verify", folder, bundle));
    assert!(!place.home.cli(&["model", "verify", "tiny"]).status.success());
}
