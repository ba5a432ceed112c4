//! What the comparing benches need: programs, real weights, medians, and the machine's load.
#![allow(dead_code, reason = "each bench uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]
#![allow(missing_docs, reason = "support for benches")]

use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Builds the programs that `cargo bench` of this package does not.
pub(crate) fn build_programs(extra: &[&str]) {
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--release",
            "--quiet",
            "-p",
            "ringfence",
            "-p",
            "ringfence-worker",
            "-p",
            "ringfence-fileguard",
            "-p",
            "ringfence-audio",
            "--bins",
        ])
        .args(extra)
        .current_dir(root())
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the programs don't build");
}

/// The folder of MiniLM's files, fetched where `make test` has not done it already.
pub(crate) fn minilm() -> PathBuf {
    let folder = root().join(".cache/minilm");
    if !folder.join("model.safetensors").exists() {
        let mut script = Command::new(root().join("scripts/fetch-sources"));
        let arguments = [root().join(".cache"), PathBuf::from("minilm")];
        let status = script.args(arguments).current_dir(root()).status().expect("the script runs");
        assert!(status.success(), "MiniLM could not be fetched");
    }
    folder
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Load of the machine over the last minute, as the kernel says.
pub(crate) fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

/// Whether a floor holds, for people.
pub(crate) fn verdict(holds: bool) -> &'static str {
    if holds { "holds" } else { "MISSED" }
}
