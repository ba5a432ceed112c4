//! What the comparing benches need: programs, real weights, medians, and the machine's load.
#![allow(dead_code, reason = "each bench uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]
#![allow(missing_docs, reason = "support for benches")]

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A process that answers each line by a line of JSON.
pub(crate) struct Side {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Side {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    pub(crate) fn ask(&mut self, what: &str) -> Value {
        writeln!(self.input, "{what}").expect("the process reads");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the process answers");
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{what}: {error}; run it by hand to see what it says"))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Builds the programs that `cargo bench` of this package does not; as `make demo` does, since without an example cargo takes
/// other features of the dependencies, and builds them all again.
pub(crate) fn build_programs() {
    run(Command::new(env!("CARGO")).args(["build", "--release", "--quiet", "--bins", "--example", "demo"]));
}

/// Runs a command in the project's folder, and fails where it does.
pub(crate) fn run(command: &mut Command) {
    let status = command.current_dir(root()).status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?} failed");
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
