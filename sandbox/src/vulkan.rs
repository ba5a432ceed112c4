//! Whose Vulkan driver a worker uses and on which card: the words for it, and the policy that follows.

use crate::Policy;
use std::fmt;

/// The driver of a worker on Vulkan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VulkanDriver {
    /// Mesa's in software.
    Software,
    /// One of Mesa's for hardware.
    Mesa {
        /// The card, by its render node: 128 is `/dev/dri/renderD128`.
        node: u16,
    },
    /// NVIDIA's.
    Nvidia {
        /// The card: 0 is `/dev/nvidia0`.
        minor: u8,
    },
}

/// Words that name no driver and card.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names no Vulkan driver and card: it is `vulkan-software`, `vulkan-mesa /dev/dri/renderD128` (any render node) \
     or `vulkan-nvidia 0` (the card's minor number, up to {NVIDIA_MINOR_MAX})"
)]
pub struct UnknownDriver(String);

const RENDER_NODE: &str = "/dev/dri/renderD";
/// Minor numbers of render nodes begin here; those below are of nodes that also drive displays.
const RENDER_NODE_MIN: u16 = 128;
/// Above it are `/dev/nvidiactl` and its like.
const NVIDIA_MINOR_MAX: u8 = 247;
/// As much of wrong words as is repeated.
const WORDS_SHOWN: usize = 100;

impl VulkanDriver {
    /// From the words of a command line.
    ///
    /// # Errors
    /// They are of another form. Nothing is looked at yet.
    pub fn parse(words: &[&str]) -> Result<Self, UnknownDriver> {
        let driver = match words {
            ["vulkan-software"] => Some(Self::Software),
            ["vulkan-mesa", path] => path.strip_prefix(RENDER_NODE).and_then(number).and_then(Self::mesa),
            ["vulkan-nvidia", minor] => number(minor).and_then(Self::nvidia),
            _ => None,
        };
        driver.ok_or_else(|| UnknownDriver(words.join(" ").chars().take(WORDS_SHOWN).collect()))
    }

    fn mesa(node: u16) -> Option<Self> {
        (node >= RENDER_NODE_MIN).then_some(Self::Mesa { node })
    }

    fn nvidia(minor: u16) -> Option<Self> {
        let minor = u8::try_from(minor).ok().filter(|minor| *minor <= NVIDIA_MINOR_MAX)?;
        Some(Self::Nvidia { minor })
    }

    /// The words that [`VulkanDriver::parse`] reads.
    pub fn words(self) -> Vec<String> {
        match self {
            Self::Software => vec!["vulkan-software".to_owned()],
            Self::Mesa { node } => vec!["vulkan-mesa".to_owned(), format!("{RENDER_NODE}{node}")],
            Self::Nvidia { minor } => vec!["vulkan-nvidia".to_owned(), minor.to_string()],
        }
    }
}

impl fmt::Display for VulkanDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join(" "))
    }
}

/// Digits as one writes a number: no sign, no zero before others.
fn number(text: &str) -> Option<u16> {
    let number: u16 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

impl Policy {
    /// The policy of `ringfence-worker` on Vulkan: that of the CPU, and what the driver needs beside it.
    pub fn worker_vulkan(driver: &VulkanDriver) -> Policy {
        let text = match *driver {
            VulkanDriver::Software => include_str!("../policies/worker-vulkan-software.policy").to_owned(),
            VulkanDriver::Mesa { node } => include_str!("../policies/worker-vulkan-mesa.policy")
                .replace("{node}", &format!("renderD{node}"))
                .replace("{minor}", &node.to_string()),
            VulkanDriver::Nvidia { minor } => {
                include_str!("../policies/worker-vulkan-nvidia.policy").replace("{minor}", &minor.to_string())
            }
        };
        Policy::worker_cpu().and(Policy::parse(&text).expect("a test parses this file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Act;

    const ALL: [VulkanDriver; 5] = [
        VulkanDriver::Software,
        VulkanDriver::Mesa { node: 128 },
        VulkanDriver::Mesa { node: u16::MAX },
        VulkanDriver::Nvidia { minor: 0 },
        VulkanDriver::Nvidia { minor: NVIDIA_MINOR_MAX },
    ];

    #[test]
    fn words_name_one_driver_and_card_or_none() {
        for driver in ALL {
            let words = driver.words();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            assert_eq!(VulkanDriver::parse(&words), Ok(driver));
        }
        let wrong: [&[&str]; 17] = [
            &[],
            &["vulkan"],
            &["vulkan-software", "0"],
            &["vulkan-mesa"],
            &["vulkan-mesa", "/dev/dri/card0"],
            &["vulkan-mesa", "/dev/dri/renderD127"],
            &["vulkan-mesa", "/dev/dri/renderD0128"],
            &["vulkan-mesa", "/dev/dri/renderD+128"],
            &["vulkan-mesa", "/dev/dri/renderD128/../../sda"],
            &["vulkan-mesa", "/dev/dri/renderD128 # a\nread /etc"],
            &["vulkan-mesa", "/dev/dri/renderD65536"],
            &["vulkan-mesa", "/dev/dri/renderD"],
            &["vulkan-nvidia", "248"],
            &["vulkan-nvidia", "-1"],
            &["vulkan-nvidia", "00"],
            &["vulkan-nvidia", ""],
            &["vulkan-nvidia", "0", "1"],
        ];
        for words in wrong {
            assert!(VulkanDriver::parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn no_driver_opens_the_way_to_an_act() {
        for driver in ALL {
            let policy = Policy::worker_vulkan(&driver);
            assert!(!policy.filter().unwrap().is_empty());
            for act in Act::ALL {
                assert_eq!(act.expected(&policy), act.expected(&Policy::worker_cpu()), "{driver}: {act:?}");
            }
        }
    }

    #[test]
    fn a_driver_s_own_calls_are_let_through_and_those_of_others_are_not() {
        let ioctl = |driver: VulkanDriver, request: u64| {
            Policy::worker_vulkan(&driver).permits(libc::SYS_ioctl, &[5, request, 0, 0, 0, 0])
        };
        // DRM_IOCTL_SYNCOBJ_WAIT, NV_ESC_RM_ALLOC, UVM_MAP_EXTERNAL_ALLOCATION, TIOCSTI, FS_IOC_SETFLAGS.
        let (drm, nvidia, uvm, tty, file) = (0xc028_64c3, 0xc030_462b, 33, 0x5412, 0x4008_6602);
        let [software, mesa, _, card, _] = ALL;
        for (driver, let_through) in [(software, vec![]), (mesa, vec![drm]), (card, vec![nvidia])] {
            for request in [drm, nvidia, uvm, tty, file] {
                assert_eq!(ioctl(driver, request), let_through.contains(&request), "{driver} {request:x}");
            }
        }
    }

    #[test]
    fn memory_of_a_node_is_shared_and_other_memory_is_not() {
        let (write, anonymous) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_ANONYMOUS);
        let mmap = |driver: &VulkanDriver, protection: i32, flags: i32| {
            let arguments = [0, 4096, protection as u64, flags as u64, 0, 0];
            Policy::worker_vulkan(driver).permits(libc::SYS_mmap, &arguments)
        };
        let [software, hardware @ ..] = ALL;
        assert!(!mmap(&software, write, libc::MAP_SHARED));
        for driver in hardware {
            assert!(mmap(&driver, write, libc::MAP_SHARED), "{driver}");
            assert!(!mmap(&driver, write, libc::MAP_SHARED | anonymous), "{driver}");
            assert!(!mmap(&driver, write | libc::PROT_EXEC, libc::MAP_SHARED), "{driver}");
            assert!(!mmap(&driver, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_SHARED), "{driver}");
        }
    }
}
