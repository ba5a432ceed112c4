//! The ledger of cores: a worker holds one for each of its threads while it has jobs, so that workers of different models
//! take turns at the cores as clients do at a worker, by the same order.
//!
//! A worker that got no job for a step and still has some shares its cores with the job whose turn it is, and the kernel
//! divides them: nobody is to wait for the last step of a job that takes long.

use crate::ids::{Time, WorkerId};
use crate::state::{Scheduler, Worker};

/// Whether a job may use cores of workers whose jobs take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cores {
    /// It is its turn.
    Shared,
    /// Others come before it, who wait for room in a worker.
    Free,
}

impl Scheduler {
    /// Threads of workers that have jobs.
    pub(crate) fn cores_held(&self) -> u32 {
        self.holders(Cores::Free).map(|(_, worker)| u32::from(worker.threads)).sum()
    }

    /// Cores that no worker holds.
    pub(crate) fn cores_free(&self) -> u16 {
        let cores = u32::from(self.config.values().devices.cpu.cores);
        u16::try_from(cores.saturating_sub(self.cores_held())).expect("no more than all")
    }

    /// Whether a worker may work now: its threads have cores, or nobody holds any, or it works already and it is its turn.
    pub(crate) fn has_cores(&self, id: WorkerId, worker: &Worker, which: Cores) -> bool {
        if which == Cores::Shared && worker.at_work() {
            return true;
        }
        let others = self.holders(which).filter(|(other, _)| *other != id);
        let held: u32 = others.map(|(_, worker)| u32::from(worker.threads)).sum();
        let cores = u32::from(self.config.values().devices.cpu.cores);
        held == 0 || held + u32::from(worker.threads) <= cores
    }

    /// When the first worker that holds cores will share them.
    pub(crate) fn cores_shared_from(&self) -> Option<Time> {
        self.holders(Cores::Shared).map(|(_, worker)| self.alone_until(worker)).min()
    }

    /// Workers whose cores others don't get.
    fn holders(&self, which: Cores) -> impl Iterator<Item = (WorkerId, &Worker)> {
        let at_work = self.workers.iter().filter(|(_, worker)| worker.at_work());
        let alone = move |worker| which == Cores::Free || self.now < self.alone_until(worker);
        at_work.filter(move |(_, worker)| alone(worker)).map(|(id, worker)| (*id, worker))
    }

    fn alone_until(&self, worker: &Worker) -> Time {
        worker.given + self.models[&worker.model].config.step_target
    }
}

impl Worker {
    /// Whether it has a job whose client waits for the device. Canaries come when nobody does, and a live job is not waited for:
    /// it may last for minutes, and works a part of them.
    pub(crate) fn at_work(&self) -> bool {
        self.slots.values().any(|slot| !slot.canary && !slot.live)
    }
}
