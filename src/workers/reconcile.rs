//! The last rung: what the kernel says that a worker has, held against what it may have.
//!
//! A worker counts what it hands out, and the kernel's limit holds if that count is passed by. That limit has to leave a
//! GPU's software driver room of its own, which a worker that somebody has taken over could use. So the server looks.

use crate::nvml::Cards;
use std::time::Duration;

/// How often it looks: a worker can be above what it may have for so long.
const EVERY: Duration = Duration::from_millis(250);

/// Memory of a card beside its lease that a worker's driver may take for itself: its context, compiled shaders, queues.
const CARD_HEADROOM_BYTES: u64 = 768 * 1024 * 1024;

/// A worker that has more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overshoot {
    /// What it has, in bytes.
    pub(crate) used: u64,
    /// What it may have.
    pub(crate) limit: u64,
}

/// Ends when the process has more than `limit` bytes of its own, or more of an NVIDIA card's memory than `device_lease`
/// and what its driver needs.
pub(crate) async fn overshoot(pid: i32, limit: u64, cards: &Cards, device_lease: u64) -> Overshoot {
    let card_limit = device_lease.saturating_add(CARD_HEADROOM_BYTES);
    let mut looks = tokio::time::interval(EVERY);
    loop {
        looks.tick().await;
        // A process that has gone has nothing; its end is noticed elsewhere.
        if let Some(used) = own_bytes(pid).filter(|used| *used > limit) {
            return Overshoot { used, limit };
        }
        if let Some(used) = cards.over_lease(pid, card_limit) {
            return Overshoot { used, limit: card_limit };
        }
    }
}

/// Memory that is a process's own, in bytes: anonymous pages, also where they are swapped out. Maps of the package,
/// which workers share, are not.
pub(crate) fn own_bytes(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    Some((kib("RssAnon:")? + kib("VmSwap:").unwrap_or(0)) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_of_its_own_counts_and_a_process_that_is_gone_has_none() {
        let own = i32::try_from(std::process::id()).expect("a pid is an i32");
        let before = own_bytes(own).expect("our own status can be read");
        let held = vec![1_u8; 64 << 20];
        let found = overshoot(own, before + (32 << 20), &Cards::unread(), 0).await;
        assert!(found.used >= before + (60 << 20) && found.limit == before + (32 << 20), "{found:?}");
        drop(held);
        assert_eq!(own_bytes(i32::MAX), None);
    }
}
