//! What happens when a grant ends while a worker holds what came from it: the worker lets go within a moment, or is killed
//! on the account of the client whose job it was.
//!
//! Others must not be disturbed by that. Such a kill is no death of the model, and the other jobs in the worker run again
//! as if they had not started. What they wait for meanwhile, the load of another worker, is what a client can spend of
//! others' time by having grants end; a rate bounds it.

use crate::action::{Failure, KillReason, Outcome};
use crate::config::Rate;
use crate::explain::Rule;
use crate::ids::{ClientId, JobId, Time, WorkerId};
use crate::rate::Bucket;
use crate::state::{Scheduler, elapsed_us};
use std::time::Duration;

/// How long a worker may keep a slot whose grant has ended, the way of the messages there and back included: 50 ms, less
/// what a kill takes to be one.
pub const FORGET_GRACE: Duration = Duration::from_millis(40);

/// The most workers that are killed on one client's account in any minute, because they did not forget.
pub const FORGET_KILLS_MAX: u64 = 10;

/// How long the loads of the workers that are killed on one client's account may take, in microseconds: a tenth of the
/// time. What loads for longer is killed less often.
pub const FORGET_LOADS: Rate = Rate { per_minute: 6_000_000, burst: 6_000_000 };

/// What one such kill counts at least, in microseconds.
const FORGET_LOAD_LEAST_US: u64 = (FORGET_LOADS.per_minute + FORGET_LOADS.burst) / FORGET_KILLS_MAX;

impl Scheduler {
    /// A job's grant has ended. It ends as if its client had taken it back; a worker that still has its slot, also that of a
    /// job that ended before, must give it back now.
    pub(crate) fn forget(&mut self, id: JobId) {
        self.end(id, Outcome::Failed(Failure::Cancelled), Rule::GrantEnded);
        let now = self.now;
        if let Some(slot) = self.workers.values_mut().find_map(|worker| worker.slots.get_mut(&id)) {
            slot.forgotten.get_or_insert(now);
        }
    }

    /// A slot was not given back in time. Where its client's rate is used up it waits as any slot that is cancelled.
    pub(crate) fn not_forgotten(&mut self, id: WorkerId, job: JobId) {
        let now = self.now;
        let worker = self.workers.get_mut(&id).expect("only known workers are late");
        let slot = worker.slots.get_mut(&job).expect("what is late is in a slot");
        let since = slot.forgotten.take().expect("what is late has been told").max(worker.heard);
        let (client, model) = (slot.client, worker.model);
        let load_us = elapsed_us(worker.ready, worker.spawned).max(FORGET_LOAD_LEAST_US);
        if !self.may_cost(client, load_us) {
            return;
        }
        // The step that is cut off will never be reported.
        self.charge_client(client, elapsed_us(now, since));
        let model = self.models.get_mut(&model).expect("a worker's model is known");
        model.owed.push_back(client);
        self.kill(id, KillReason::ForgetIgnored { job }, Rule::ForgetGrace);
    }

    fn may_cost(&mut self, client: ClientId, load_us: u64) -> bool {
        let now = self.now;
        let mut may = false;
        self.change_client(client, |client| may = take_load(&mut client.forget_loads, now, load_us));
        may
    }
}

/// Takes a load of so long, if it may be taken.
fn take_load(bucket: &mut Bucket, now: Time, load_us: u64) -> bool {
    let may = bucket.wait(FORGET_LOADS, now, load_us).is_zero();
    if may {
        bucket.take(FORGET_LOADS, now, load_us);
    }
    may
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// When kills happen that are wanted all the time, in seconds.
    fn kills(load_us: u64, seconds: u64) -> Vec<u64> {
        let mut bucket = Bucket::default();
        let tries = (0..seconds).flat_map(|second| [second; 20]);
        tries
            .filter(|second| take_load(&mut bucket, Time(second * SECOND), load_us.max(FORGET_LOAD_LEAST_US)))
            .collect()
    }

    #[test]
    fn no_minute_has_more_kills_than_may_be_and_slow_loads_have_fewer() {
        let quick = kills(1_000, 600);
        let in_minute = |from: &u64| quick.iter().filter(|at| (*from..from + 60).contains(at)).count() as u64;
        assert!(quick.iter().all(|from| in_minute(from) <= FORGET_KILLS_MAX), "{quick:?}");
        assert_eq!(quick.len(), 5 + 49);
        // A load of three seconds takes half a minute to be forgiven.
        assert_eq!(kills(3 * SECOND, 120), [0, 0, 30, 60, 90]);
        // One that is longer than a burst comes alone, and is paid for whole.
        assert_eq!(kills(20 * SECOND, 600), [0, 200, 400]);
    }
}
