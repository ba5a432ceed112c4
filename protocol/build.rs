//! Digests this crate's sources, so that two programs built from different messages refuse each other.

use sha2::{Digest, Sha256};

fn main() {
    let mut paths: Vec<_> = std::fs::read_dir("src")
        .expect("a crate has a src folder")
        .map(|entry| entry.expect("the folder is readable").path())
        .collect();
    paths.sort();
    let mut digest = Sha256::new();
    for path in paths {
        println!("cargo:rerun-if-changed={}", path.display());
        digest.update(std::fs::read(&path).expect("a source file is readable"));
    }
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rustc-env=RINGFENCE_PROTOCOL_DIGEST={:x}", digest.finalize());
}
