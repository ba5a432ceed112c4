//! The program itself, in its real sandbox, started by `examples/worker_spawner.rs` in the server's place.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::data;

/// Examples lie beside the folder of the test executables.
fn spawner() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().and_then(Path::parent).unwrap().join("examples/worker_spawner");
    assert!(program.exists(), "`cargo build -p ringfence-worker --examples` makes {}", program.display());
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

fn embeds_on(device: &str) {
    // Where the dropped user may run it.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let worker = folder.path().join("ringfence-worker");
    std::fs::copy(env!("CARGO_BIN_EXE_ringfence-worker"), &worker).unwrap();
    let user = if rustix::process::getuid().is_root() { "nobody" } else { "-" };
    let package = data("tiny-bert");
    let output = Command::new(spawner())
        .args([&worker, Path::new(user), Path::new(device), &package])
        .args(["a", "hello"])
        .output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("Seccomp"), "{said}");
}
