//! Want of memory as a contract: whatever asks for too much is stopped on one of these rungs, and it is said on which.

use crate::alerts::{Alerts, Kind, News};
use serde::Serialize;
use utoipa::ToSchema;

/// Who stopped it, from the earliest to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Rung {
    /// The server, before anything was started for it: by the lease, the device, and what the model is known to take.
    RefusedByProfile,
    /// The worker's own count of what it hands out, on the CPU or on a GPU; also a driver that said so.
    RefusedByWorker,
    /// The kernel had no more for the worker, which ended.
    KilledByKernel,
    /// The server found the worker above what it may have.
    KilledByReconcile,
}

impl Rung {
    /// A stable name, for the wire and for metrics.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::RefusedByProfile => "refused-by-profile",
            Self::RefusedByWorker => "refused-by-worker",
            Self::KilledByKernel => "killed-by-kernel",
            Self::KilledByReconcile => "killed-by-reconcile",
        }
    }

    /// Counts one job, load or worker that was stopped here, and tells the operator.
    pub(crate) fn stopped(self, alerts: &Alerts, model: &str, device: &str, message: String) {
        let labels =
            [("rung", self.code().to_owned()), ("model", model.to_owned()), ("device", device.to_owned())];
        metrics::counter!("ringfence_oom_total", &labels).increment(1);
        alerts.raise(News { kind: Kind::OutOfMemory, model, device, rung: Some(self), message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_rung_is_its_name_on_the_wire() {
        use Rung::{KilledByKernel, KilledByReconcile, RefusedByProfile, RefusedByWorker};
        for rung in [RefusedByProfile, RefusedByWorker, KilledByKernel, KilledByReconcile] {
            assert_eq!(serde_json::to_value(rung).unwrap(), rung.code());
        }
    }
}
