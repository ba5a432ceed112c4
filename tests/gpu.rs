//! A model on a GPU, in its own sandbox: Mesa's software driver stands in for the card.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::{Value, json};
use support::Home;

const ON_GPU: &str =
    "[devices.wgpu]\nmemory_mib = 512\n[models.tiny-gpu]\ndevice = \"wgpu\"\nlease_mib = 64\n";

fn vector(answer: &Value) -> Vec<f64> {
    answer["data"][0]["embedding"].as_array().unwrap().iter().map(|float| float.as_f64().unwrap()).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn a_model_answers_from_a_gpu_as_from_the_cpu_under_leases_of_both_memories() {
    let home = Home::with_tiny();
    home.add_tiny("tiny-gpu");
    home.quotas(ON_GPU);
    let server = home.start();
    let ask = |model: &str| server.api().embed(&json!({"model": model, "input": "a quick brown fox"})).ok();
    let (cpu, gpu) = (vector(&ask("tiny-bert")), vector(&ask("tiny-gpu")));
    assert!(cosine(&cpu, &gpu) > 0.9999, "{cpu:?} {gpu:?}");
    let status = server.status();
    let worker = |model: &str| {
        let workers = status["workers"].as_array().unwrap();
        workers.iter().find(|worker| worker["model"] == model).unwrap().clone()
    };
    let (on_cpu, on_gpu) = (worker("tiny-bert"), worker("tiny-gpu"));
    assert_eq!((&on_cpu["device"], &on_cpu["tier"]), (&json!("cpu"), &json!("kernel")));
    assert_eq!((&on_gpu["device"], &on_gpu["tier"]), (&json!("wgpu"), &json!("polled-kill")));
    assert_eq!(on_gpu["lease_bytes"], 64 << 20);
    let bytes = |key: &str| on_gpu[key].as_u64().unwrap();
    // The ring of uploads alone takes more than that, and it is in no allocator of the host's.
    assert!((4 << 20..=bytes("peak_bytes")).contains(&bytes("used_bytes")), "{on_gpu}");
    assert!(bytes("peak_bytes") <= bytes("lease_bytes"), "{on_gpu}");
    assert_eq!(on_gpu["layers"], on_cpu["layers"], "no layer is left out");
    let devices = status["devices"].as_array().unwrap();
    let device = devices.iter().find(|device| device["name"] == "wgpu").unwrap();
    assert_eq!((&device["budget_bytes"], &device["promised_bytes"]), (&json!(512 << 20), &json!(64 << 20)));
    let probes = status["sandbox"]["probes"].as_array().unwrap();
    let of_gpu = probes.iter().filter(|probe| probe.as_str().unwrap().starts_with("vulkan-software "));
    assert_eq!(of_gpu.count() * 2, probes.len(), "every act was tried in both sandboxes");
}

#[test]
fn a_lease_on_a_gpu_that_nobody_gave_is_refused_until_somebody_gives_it() {
    let home = Home::with_tiny();
    home.quotas("[models.tiny-bert]\ndevice = \"wgpu\"\nlease_mib = 64\n");
    let server = home.start();
    let ask = || server.api().embed(&json!({"model": "tiny-bert", "input": "a"}));
    assert_eq!(ask().code(), "lease_too_large");
    let probes = || server.status()["sandbox"]["probes"].as_array().unwrap().len();
    let before = probes();
    home.cli_ok(&["quota", "set", "devices.wgpu.memory_mib=512"]);
    assert_eq!(probes(), 2 * before, "its sandbox was proven before anything ran in it");
    ask().ok();
}

#[test]
fn a_device_lease_that_does_not_hold_the_model_is_a_typed_failure_and_others_go_on() {
    let home = Home::with_tiny();
    home.add_tiny("tiny-gpu");
    home.quotas(&ON_GPU.replace("lease_mib = 64", "lease_mib = 1"));
    let server = home.start();
    let ask = |model: &str| server.api().embed(&json!({"model": model, "input": "a"}));
    assert_eq!(ask("tiny-gpu").code(), "load_failed", "{}", server.log());
    let models = server.status()["models"].clone();
    let model = models.as_array().unwrap().iter().find(|model| model["name"] == "tiny-gpu").unwrap();
    let reason = model["reason"].as_str().unwrap();
    assert!(reason.contains("out of memory") && reason.contains("of 1048576 in use"), "{reason}");
    ask("tiny-bert").ok();
}

#[test]
fn the_least_host_lease_that_quotas_take_holds_the_driver() {
    let home = Home::with_tiny();
    let least = |mib: u32| ON_GPU.replace("tiny-gpu", "tiny-bert") + &format!("host_lease_mib = {mib}\n");
    home.quotas(&least(63));
    assert!(home.try_start().err().unwrap().contains("host_lease_mib"));
    home.quotas(&least(64));
    home.start().api().embed(&json!({"model": "tiny-bert", "input": "a"})).ok();
}
