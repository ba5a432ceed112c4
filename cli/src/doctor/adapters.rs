//! Vulkan devices as workers see them: each driver is asked from inside the sandbox that its workers get.

use super::Finding;
use crate::commands::model::sandboxed::user;
use crate::error::Source;
use crate::home::Home;
use crate::output::bytes;
use ringfence_protocol::connected_pair;
use ringfence_sandbox::{Child, Environment, Exit, SpawnRequest, StatusPage, User, VulkanDriver, spawn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use serde_json::Value;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

const AREA: &str = "devices";

/// How long one driver may take to say what it has.
const ANSWER_MAX: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// The most of an answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Memory that the program may take: drivers' libraries and compilers.
const DATA_BYTES_MAX: u64 = 1 << 30;

/// Cards that are asked at most.
const CARDS_MAX: usize = 16;

/// One finding for each driver that this machine could have, and one for each device beyond the first.
pub(super) fn all(home: &Home) -> Vec<Finding> {
    let user = match user(home) {
        Ok(user) => user,
        Err(error) => {
            let advice = "run as root it needs a home, to know which user workers run as: ringfence init";
            return vec![Finding::absent(AREA, "vulkan", error.to_string(), advice)];
        }
    };
    drivers().into_iter().flat_map(|driver| ask(driver, user)).collect()
}

/// Software, and one for each node of a card.
fn drivers() -> Vec<VulkanDriver> {
    let mut drivers = vec![VulkanDriver::Software];
    for node in super::devices::names("/dev/dri") {
        drivers.extend(VulkanDriver::parse(&["vulkan-mesa", &format!("/dev/dri/{node}")]).ok());
    }
    let cards = super::devices::names("/dev");
    for minor in cards.filter_map(|name| Some(name.strip_prefix("nvidia")?.to_owned())) {
        drivers.extend(VulkanDriver::parse(&["vulkan-nvidia", &minor]).ok());
    }
    drivers.truncate(CARDS_MAX);
    drivers
}

fn ask(driver: VulkanDriver, user: Option<User>) -> Vec<Finding> {
    let name = driver.words().join(" ").replace("/dev/dri/", "");
    match answer(driver, user) {
        Ok(devices) => devices.iter().map(|device| describe(driver, &name, device)).collect(),
        Err(error) => {
            let advice = "models run without it; packaging/README.md says which packages bring it";
            vec![Finding::absent(AREA, &name, printable(&error.to_string()), advice)]
        }
    }
}

fn describe(driver: VulkanDriver, name: &str, device: &Value) -> Finding {
    let text = |field: &str| printable(device[field].as_str().unwrap_or("?"));
    let number = |field: &str| device[field].as_u64().unwrap_or(0);
    let subgroups = match device["subgroups"].as_bool() {
        Some(true) => {
            format!("subgroups of {} to {}", device["subgroup_size"][0], device["subgroup_size"][1])
        }
        _ => "no subgroups".to_owned(),
    };
    let f16 = if device["f16"] == true { "f16" } else { "no f16" };
    let faults: Vec<String> =
        device["faults"].as_array().into_iter().flatten().filter_map(Value::as_str).map(printable).collect();
    let Some(products) = device["products"].as_str() else {
        let found = format!("{} ({}): {}", text("name"), text("driver"), faults.join("; "));
        return Finding::no(
            AREA,
            name,
            found,
            "no model can run on it: update its driver, or use another device",
        );
    };
    let unused =
        if faults.is_empty() { String::new() } else { format!(" (not used: {})", faults.join("; ")) };
    let found = format!(
        "{} ({}, {}): {f16}, {subgroups}, {} shapes of cooperative matrices, weights in halves multiplied in \
         {products}{unused}, bindings up to {}, buffers up to {}; tier {}",
        text("name"),
        text("driver"),
        text("kind"),
        number("cooperative_matrices"),
        bytes(number("binding_bytes_max")),
        bytes(number("buffer_bytes_max")),
        tier(driver),
    );
    Finding::yes(AREA, name, found)
}

/// What holds a worker on it to its lease of device memory.
fn tier(driver: VulkanDriver) -> &'static str {
    match driver {
        VulkanDriver::Software => "polled-kill, with RLIMIT_DATA behind it: its memory is the worker's own",
        VulkanDriver::Mesa { .. } => "in-process",
        VulkanDriver::Nvidia { .. } if super::sharing::has_nvml() => {
            "in-process, with a polled kill behind it where NVML names the worker"
        }
        VulkanDriver::Nvidia { .. } => "in-process",
    }
}

/// What the worker prints, each line one device.
fn answer(driver: VulkanDriver, user: Option<User>) -> Result<Vec<Value>, Source> {
    let child = start(driver, user)?;
    let ended = poll(&mut [PollFd::new(&child.pidfd, PollFlags::IN)], Some(&ANSWER_MAX))?;
    if ended == 0 {
        child.kill()?;
        return Err(format!("it said nothing within {} s", ANSWER_MAX.tv_sec).into());
    }
    let exit = child.wait()?;
    let (printed, said) = (read(&child.stdout)?, read(&child.stderr)?);
    match exit {
        Exit::Code(0) => Ok(printed.lines().map(serde_json::from_str).collect::<Result<_, _>>()?),
        Exit::Code(_) => Err(said.trim().into()),
        Exit::Signal(signal) => {
            Err(format!("its sandbox was entered, and it died by signal {signal}").into())
        }
    }
}

fn start(driver: VulkanDriver, user: Option<User>) -> Result<Child, Source> {
    let path = std::env::current_exe()?.with_file_name("ringfence-worker");
    let program = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("{} can't be opened: {error}", path.display()))?;
    let (_ours, theirs) = connected_pair()?;
    let page = StatusPage::create()?;
    let words = [vec!["devices".to_owned()], driver.words()].concat();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(spawn(SpawnRequest {
        program: program.as_fd(),
        arguments: &words,
        environment: Environment { threads: Some(1) },
        link: theirs,
        status_page: &page,
        cgroup: None,
        user,
        data_bytes_max: Some(DATA_BYTES_MAX),
    })?)
}

/// What waits in the pipe of a program that has ended.
fn read(pipe: &OwnedFd) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::from(pipe.try_clone()?).take(ANSWER_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A driver's words may hold anything.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_device_is_told_with_what_models_need_of_it() {
        let device = json!({"name": "A card\u{1b}[31m", "driver": "mesa 25", "kind": "discrete", "f16": true,
            "subgroups": true, "subgroup_size": [32, 64], "cooperative_matrices": 2, "products": "f16",
            "faults": ["cooperative matrices: its results were wrong"],
            "binding_bytes_max": 134_217_728, "buffer_bytes_max": 2_147_483_648_u64});
        let finding = describe(VulkanDriver::Mesa { node: 128 }, "vulkan-mesa renderD128", &device);
        assert_eq!(
            finding.found,
            "A card[31m (mesa 25, discrete): f16, subgroups of 32 to 64, 2 shapes of cooperative matrices, weights in \
             halves multiplied in f16 (not used: cooperative matrices: its results were wrong), bindings up to 128.0 MiB, \
             buffers up to 2.0 GiB; tier in-process"
        );
        let broken =
            json!({"name": "A card", "driver": "mesa 25", "products": null, "faults": ["it computes wrong"]});
        let finding = describe(VulkanDriver::Mesa { node: 128 }, "vulkan-mesa renderD128", &broken);
        assert_eq!(finding.found, "A card (mesa 25): it computes wrong");
        assert!(finding.advice.is_some());
    }

    #[test]
    fn software_is_asked_first_and_few_are_asked() {
        let drivers = drivers();
        assert_eq!(drivers[0], VulkanDriver::Software);
        assert!(drivers.len() <= CARDS_MAX);
    }
}
