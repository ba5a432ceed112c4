//! The program itself, in its real sandbox, started by `examples/worker_spawner.rs` in the server's place.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "support/live.rs"]
mod live;
mod support;
#[path = "support/whisper.rs"]
mod tiny;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::data;

/// Examples lie beside the folder of the test executables.
fn example(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(program.exists(), "`cargo build --workspace --examples` makes {}", program.display());
    program
}

#[test]
fn a_package_loads_and_embeds_under_the_filter() {
    embeds_on("cpu");
}

#[test]
fn a_package_loads_and_embeds_on_software_vulkan_under_the_filter() {
    embeds_on("vulkan-software");
}

#[test]
fn live_sound_is_heard_under_the_filter() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let package = |name: &str, files: BTreeMap<String, Vec<u8>>| {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        files.iter().for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).unwrap());
        folder
    };
    let model = package("model", tiny::package(false));
    let detector = package("detector", live::detector());
    spawns("live_spawner", &[&model, &detector]);
}

fn embeds_on(device: &str) {
    let package = data("tiny-bert");
    spawns("worker_spawner", &[Path::new(device), &package, Path::new("a"), Path::new("hello")]);
}

/// Runs an example with the worker's program, as the user that workers run as.
fn spawns(name: &str, arguments: &[&Path]) {
    // Where the dropped user may run it.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let worker = folder.path().join("ringfence-worker");
    std::fs::copy(env!("CARGO_BIN_EXE_ringfence-worker"), &worker).unwrap();
    let user = if rustix::process::getuid().is_root() { "nobody" } else { "-" };
    let output = Command::new(example(name)).args([&worker, Path::new(user)]).args(arguments).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("Seccomp"), "{said}");
}
