//! What of this machine can cap the memory that a process takes of a card, and at which tier.
//!
//! None of it is set up by Ringfence: it is an administrator's, and said here with what it would give.

use super::Finding;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

const AREA: &str = "caps";

/// Where MPS's control process listens, unless its administrator names another folder.
const MPS_FOLDER: &str = "/tmp/nvidia-mps";

/// The library of NVIDIA's driver that says who uses its cards.
const NVML: &str = "libnvidia-ml.so.1";

pub(super) fn all() -> Vec<Finding> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let folder = std::env::var_os("CUDA_MPS_PIPE_DIRECTORY").map_or_else(|| MPS_FOLDER.into(), PathBuf::from);
    vec![dmem(&controllers), nvml(), mps(&folder), mig(Path::new("/proc/driver/nvidia"))]
}

/// Whether the library is there by which the server sees what each process has of an NVIDIA card's memory.
pub(super) fn has_nvml() -> bool {
    super::devices::LIBRARIES.iter().any(|folder| Path::new(folder).join(NVML).exists())
}

fn nvml() -> Finding {
    if has_nvml() {
        return Finding::yes(
            AREA,
            "nvml",
            format!("{NVML}: the server kills a worker that it names far above its lease of a card"),
        );
    }
    let advice = "needed for NVIDIA cards only, to kill workers far above their leases: it comes with the driver's packages";
    Finding::absent(AREA, "nvml", format!("{NVML} is not installed"), advice)
}

fn dmem(controllers: &str) -> Finding {
    if controllers.split_whitespace().any(|controller| controller == "dmem") {
        let found = "tier kernel is to be had: the kernel can cap device memory of cards whose driver takes part (amdgpu, \
                     xe); this version sets no such cap itself, put the server's cgroup under one";
        return Finding::yes(AREA, "dmem_cgroup", found);
    }
    Finding::absent(
        AREA,
        "dmem_cgroup",
        "the kernel does not cap device memory",
        "for tier kernel on a card run Linux 6.14 or later with CONFIG_CGROUP_DMEM and cgroup2; amdgpu and xe take part",
    )
}

/// The control process makes a FIFO of this name.
fn mps(folder: &Path) -> Finding {
    let control = folder.join("control");
    if fs::metadata(&control).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
        let found = format!(
            "{} is there: with driver r615 or later a memory partition of MPS gives tier driver; it divides CUDA's work, \
             not Vulkan's",
            control.display()
        );
        return Finding::yes(AREA, "mps", found);
    }
    Finding::absent(
        AREA,
        "mps",
        format!("no control process listens in {}", folder.display()),
        "for tier driver with CUDA on an NVIDIA card: nvidia-cuda-mps-control -d, as an administrator",
    )
}

/// A card that is divided lists its instances as capabilities.
fn mig(driver: &Path) -> Finding {
    const NAME: &str = "mig";
    let cards = fs::read_dir(driver.join("capabilities")).into_iter().flatten().flatten();
    let folders = cards.map(|card| card.path().join("mig")).filter_map(|folder| fs::read_dir(folder).ok());
    let instances = folders.flatten().flatten();
    let count = instances.filter(|entry| entry.file_name().to_string_lossy().starts_with("gi")).count();
    if count > 0 {
        return Finding::yes(
            AREA,
            NAME,
            format!("{count} instances: each is capped by the card itself, tier driver"),
        );
    }
    Finding::absent(
        AREA,
        NAME,
        "no card is divided into instances",
        "for tier driver on a card that can (A100, H100 and later): nvidia-smi -mig 1, as an administrator",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Answer;

    #[test]
    fn what_caps_a_card_is_found_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let answer = |finding: Finding| finding.answer;
        assert_eq!(answer(dmem("cpu memory dmem pids")), Answer::Yes);
        assert_eq!(answer(dmem("cpu memory pids")), Answer::Absent);
        assert_eq!(answer(mps(folder.path())), Answer::Absent);
        fs::write(folder.path().join("control"), "no FIFO").unwrap();
        assert_eq!(answer(mps(folder.path())), Answer::Absent);
        fs::remove_file(folder.path().join("control")).unwrap();
        let fifo = std::process::Command::new("mkfifo").arg(folder.path().join("control")).status().unwrap();
        assert!(fifo.success());
        assert_eq!(answer(mps(folder.path())), Answer::Yes);
        assert_eq!(answer(mig(folder.path())), Answer::Absent);
        fs::create_dir_all(folder.path().join("capabilities/gpu0/mig")).unwrap();
        fs::write(folder.path().join("capabilities/gpu0/mig/config"), "").unwrap();
        assert_eq!(answer(mig(folder.path())), Answer::Absent);
        fs::create_dir_all(folder.path().join("capabilities/gpu0/mig/gi1")).unwrap();
        let found = mig(folder.path());
        assert_eq!((found.answer, found.found.contains("1 instances")), (Answer::Yes, true));
    }
}
