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

#[test]
fn models_are_placed_on_several_gpus_and_one_that_is_named_is_kept_to() {
    let home = Home::with_tiny();
    home.add_tiny("tiny-any");
    home.add_tiny("tiny-second");
    home.quotas(
        "[devices.first]\nmemory_mib = 64\n[devices.second]\nmemory_mib = 64\n\
         [models.tiny-bert]\ndevice = \"wgpu\"\nlease_mib = 64\n[models.tiny-any]\ndevice = \"wgpu\"\nlease_mib = 64\n\
         [models.tiny-second]\ndevice = \"second\"\nlease_mib = 64\n",
    );
    let server = home.start();
    let ask = |model: &str| server.api().embed(&json!({"model": model, "input": "a"}));
    let places = || -> Vec<(String, String)> {
        let workers = server.status()["workers"].as_array().unwrap().clone();
        let text = |worker: &Value, field: &str| worker[field].as_str().unwrap().to_owned();
        workers.iter().map(|worker| (text(worker, "model"), text(worker, "device"))).collect()
    };
    let on = |model: &str, device: &str| (model.to_owned(), device.to_owned());
    ask("tiny-bert").ok();
    assert_eq!(places(), [on("tiny-bert", "first")]);
    ask("tiny-any").ok();
    assert_eq!(places(), [on("tiny-bert", "first"), on("tiny-any", "second")]);
    let answer = ask("tiny-second");
    answer.ok();
    assert_eq!(answer.header("ringfence-device"), Some("second"));
    assert_eq!(places(), [on("tiny-bert", "first"), on("tiny-second", "second")], "who is in the way leaves");
    let devices = server.status()["devices"].clone();
    let named =
        |name: &str| devices.as_array().unwrap().iter().find(|device| device["name"] == name).cloned();
    assert_eq!(named("second").unwrap()["driver"], "vulkan-software");
    assert_eq!(named("wgpu"), None);
    let other = home.cli(&["quota", "set", "devices.third.memory_mib=5", "--json"]);
    assert!(String::from_utf8_lossy(&other.stdout).contains("quota_needs_restart"), "{other:?}");
}

#[test]
fn a_gpu_whose_card_is_not_there_stops_the_start_and_says_which() {
    let home = Home::with_tiny();
    home.quotas("[devices.card]\nmemory_mib = 64\ndriver = \"nvidia\"\nnode = \"200\"\n");
    let log = home.try_start().err().expect("the server must not start");
    assert!(log.contains("/dev/nvidia"), "{log}");
}

#[test]
fn a_model_falls_back_to_the_cpu_where_its_quota_says_so_and_the_answer_says_it() {
    let home = Home::with_tiny();
    home.add_tiny("tiny-gpu");
    let quotas = ON_GPU.replace("lease_mib = 64", "lease_mib = 1");
    home.quotas(&format!("{quotas}fallback_device = \"cpu\"\n"));
    let server = home.start();
    let ask = |model: &str| server.api().embed(&json!({"model": model, "input": "a quick brown fox"}));
    let (cpu, fallen) = (ask("tiny-bert"), ask("tiny-gpu"));
    assert_eq!(vector(&cpu.ok()), vector(&fallen.ok()), "{}", server.log());
    assert_eq!((cpu.header("ringfence-device"), cpu.header("ringfence-fallback-from")), (Some("cpu"), None));
    let labels = (fallen.header("ringfence-device"), fallen.header("ringfence-fallback-from"));
    assert_eq!(labels, (Some("cpu"), Some("tiny-gpu")));
    assert_eq!(fallen.json()["model"], "tiny-gpu");
    let names = server.api().get("/v1/models").ok();
    assert!(!names.to_string().contains('@'), "{names}");
    assert_eq!(ask("tiny-gpu@cpu").code(), "model_unknown");
    home.cli_ok(&["quota", "set", "models.tiny-gpu.fallback_device=none"]);
    assert!(ask("tiny-gpu").status >= 500);
}
