//! The table of crates in ARCHITECTURE.md, held against `cargo metadata`.

use std::collections::BTreeSet;
use std::process::Command;

/// Each package and the packages of this workspace that it may depend on (normal edges).
const ALLOWED: &[(&str, &[&str])] = &[
    (
        "ringfence",
        &[
            "ringfence-audit",
            "ringfence-grants",
            "ringfence-models",
            "ringfence-protocol",
            "ringfence-sandbox",
            "ringfence-scheduler",
        ],
    ),
    (
        "ringfence-server",
        &[
            "ringfence-audit",
            "ringfence-grants",
            "ringfence-models",
            "ringfence-protocol",
            "ringfence-sandbox",
            "ringfence-scheduler",
        ],
    ),
    ("ringfence-audio", &["ringfence-protocol", "ringfence-sandbox"]),
    ("ringfence-fileguard", &["ringfence-protocol", "ringfence-sandbox"]),
    ("ringfence-worker", &["ringfence-gpu", "ringfence-kernels", "ringfence-protocol", "ringfence-sandbox"]),
    (
        "ringfence-fuzz",
        &[
            "ringfence-audio",
            "ringfence-audit",
            "ringfence-kernels",
            "ringfence-models",
            "ringfence-protocol",
            "ringfence-sandbox",
            "ringfence-scheduler",
            "ringfence-worker",
        ],
    ),
    ("ringfence-audit", &[]),
    ("ringfence-gpu", &[]),
    ("ringfence-grants", &[]),
    ("ringfence-kernels", &[]),
    ("ringfence-models", &[]),
    ("ringfence-protocol", &[]),
    ("ringfence-sandbox", &[]),
    ("ringfence-scheduler", &[]),
];

/// Crates that a program must never link, with the reason.
const BANNED: &[(&str, &str)] = &[
    ("candle-core", "the server links no model runtime"),
    ("cpal", "the server opens no microphone"),
    ("rubato", "the server touches no sound"),
    ("safetensors", "the server parses no weights"),
    ("tokenizers", "the server parses no documents"),
    ("wgpu", "the server opens no device"),
];

#[test]
fn programs_depend_on_leaves_and_leaves_on_nothing_of_ours() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("metadata has packages");
    let ours: BTreeSet<&str> = packages.iter().map(name).collect();
    let expected: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    assert_eq!(ours, expected, "a package is missing from the table or from the workspace");
    for package in packages {
        let (_, allowed) = ALLOWED.iter().find(|(of, _)| *of == name(package)).expect("compared above");
        let normal = package["dependencies"].as_array().expect("a list").iter();
        let normal = normal.filter(|dependency| dependency["kind"].is_null()).map(name);
        let edges: BTreeSet<&str> = normal.filter(|edge| ours.contains(edge)).collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        assert_eq!(edges, allowed, "{}", name(package));
    }
}

#[test]
fn the_server_links_no_model_runtime() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "-p",
            "ringfence-server",
            "-e",
            "normal",
            "--prefix",
            "none",
            "-f",
            "{p}",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    for (banned, reason) in BANNED {
        assert!(!tree.lines().any(|line| line.starts_with(&format!("{banned} "))), "{banned}: {reason}");
    }
}

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

fn name(value: &serde_json::Value) -> &str {
    value["name"].as_str().expect("every package has a name")
}
