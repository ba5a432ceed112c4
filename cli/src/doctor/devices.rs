//! Processors and graphics cards, with their drivers. Only what the system says of itself: no driver is loaded.

use super::Finding;
use crate::output::bytes;
use std::fs;
use std::path::{Path, PathBuf};

const AREA: &str = "devices";

/// Where the Vulkan loader looks for drivers.
const VULKAN_DRIVERS: [&str; 2] = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"];

/// Where libraries lie.
pub(super) const LIBRARIES: [&str; 4] =
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"];

pub(super) fn all() -> Vec<Finding> {
    let mut findings = vec![cpu(), memory(), vulkan_loader(), vulkan_drivers(), render_nodes()];
    findings.extend(nvidia());
    findings
}

fn cpu() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let name = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "a processor".to_owned());
    let instructions = match () {
        () if std::is_x86_feature_detected!("avx512f") => "AVX-512",
        () if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") => "AVX2",
        () => {
            let advice = "models run, about ten times slower; a processor with AVX2 and FMA helps";
            return Finding::absent(AREA, "cpu", format!("{name}, {cores} cores, without AVX2"), advice);
        }
    };
    Finding::yes(AREA, "cpu", format!("{name}, {cores} cores, {instructions}"))
}

fn memory() -> Finding {
    let kib = |name| field("/proc/meminfo", name)?.split_whitespace().next()?.parse::<u64>().ok();
    match (kib("MemTotal"), kib("MemAvailable")) {
        (Some(total), Some(available)) => {
            let (total, available) = (bytes(total * 1024), bytes(available * 1024));
            Finding::yes(AREA, "memory", format!("{available} of {total} available"))
        }
        (_, _) => Finding::absent(
            AREA,
            "memory",
            "/proc/meminfo can't be read",
            "mount /proc, or set devices.cpu.memory_mib in quotas.toml",
        ),
    }
}

fn vulkan_loader() -> Finding {
    let here =
        LIBRARIES.iter().map(|folder| Path::new(folder).join("libvulkan.so.1")).find(|file| file.exists());
    match here {
        Some(file) => Finding::yes(AREA, "vulkan_loader", file.display().to_string()),
        None => Finding::absent(
            AREA,
            "vulkan_loader",
            "libvulkan.so.1 is not installed",
            "models run on the CPU; for a graphics card install libvulkan1",
        ),
    }
}

fn vulkan_drivers() -> Finding {
    let files = VULKAN_DRIVERS.iter().flat_map(|folder| names(folder));
    let mut drivers: Vec<String> =
        files.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect();
    drivers.sort();
    drivers.dedup();
    if drivers.is_empty() {
        let advice =
            "install the card's driver: mesa-vulkan-drivers for AMD, Intel and software, or NVIDIA's own";
        return Finding::absent(AREA, "vulkan_drivers", "none", advice);
    }
    Finding::yes(AREA, "vulkan_drivers", drivers.join(", "))
}

fn render_nodes() -> Finding {
    let nodes: Vec<PathBuf> = names("/dev/dri")
        .filter(|name| name.starts_with("renderD"))
        .map(|name| Path::new("/dev/dri").join(name))
        .collect();
    let list = nodes.iter().map(|node| node.display().to_string()).collect::<Vec<_>>().join(", ");
    let open = |node: &PathBuf| {
        rustix::fs::access(node, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_ok()
    };
    match nodes.iter().find(|node| !open(node)) {
        _ if nodes.is_empty() => Finding::absent(
            AREA,
            "render_nodes",
            "no card has a render node",
            "models run on the CPU; a card needs its kernel driver loaded",
        ),
        Some(node) => Finding::absent(
            AREA,
            "render_nodes",
            format!("{list}; {} is closed to this user", node.display()),
            "put the server's user into the group that owns it, most often `render`",
        ),
        None => Finding::yes(AREA, "render_nodes", list),
    }
}

/// The kernel driver's own words; a missing card is no finding where there is no driver either.
fn nvidia() -> Vec<Finding> {
    let version = fs::read_to_string("/proc/driver/nvidia/version");
    let Ok(version) = version else {
        return vec![Finding::absent(
            AREA,
            "nvidia",
            "no NVIDIA driver is loaded",
            "needed for NVIDIA cards only: install the driver, then `modprobe nvidia`",
        )];
    };
    let driver = version.lines().next().unwrap_or("unknown").trim().to_owned();
    let mut findings = vec![Finding::yes(AREA, "nvidia", driver)];
    for card in names("/proc/driver/nvidia/gpus") {
        let file = format!("/proc/driver/nvidia/gpus/{card}/information");
        let model = field(&file, "Model").unwrap_or_else(|| "a card".to_owned());
        findings.push(Finding::yes(AREA, format!("nvidia_{card}"), model));
    }
    findings
}

/// The value of a `name : value` line.
fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let values = text.lines().filter_map(|line| line.split_once(':'));
    let mut of = values.filter(|(key, _)| key.trim() == name);
    of.next().map(|(_, value)| value.trim().to_owned())
}

pub(super) fn names(folder: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}
