//! What becomes of a job whose request is over before it, and of what a worker has of a granted file after its grant.

use super::Dispatcher;
use crate::grants::GrantEnd;
use ringfence_scheduler::{Event, JobId};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// How often it is looked whether a worker has given back a slot of a granted file that nobody waits for.
const SLOT_LOOK: Duration = Duration::from_millis(100);

/// Kept while a request waits for its job's answer.
pub(super) struct Waiting {
    dispatcher: Arc<Dispatcher>,
    job: JobId,
    /// Of the grant that the job is on.
    grant: Option<GrantEnd>,
    answered: bool,
}

impl Waiting {
    pub(super) fn new(dispatcher: Arc<Dispatcher>, job: JobId, grant: Option<GrantEnd>) -> Self {
        Self { dispatcher, job, grant, answered: false }
    }

    /// The job is on another grant from now on.
    pub(super) fn renew(&mut self, grant: GrantEnd) {
        self.grant = Some(grant);
    }

    /// The answer is there: no more waiting.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Waiting {
    /// A client that has gone away takes its job back. What a worker still has of a granted file stays under its grant, also
    /// where a deadline or the client's going has ended the job.
    fn drop(&mut self) {
        let Self { dispatcher, job, grant, answered } = self;
        match grant.take() {
            Some(grant) if grant.is_over() => dispatcher.forget(*job),
            grant => {
                if !*answered {
                    dispatcher.cancel(*job);
                }
                if let Some(grant) = grant {
                    dispatcher.forget_later(*job, grant);
                }
            }
        }
    }
}

impl Dispatcher {
    fn cancel(self: &Arc<Self>, job: JobId) {
        let mut state = self.lock();
        if state.jobs.contains_key(&job) {
            state.record_cancel(job, false);
            self.step(&mut state, Event::Cancel { job });
        }
    }

    /// The grant that a job was on has ended: whoever has it lets go of it, or is killed.
    fn forget(self: &Arc<Self>, job: JobId) {
        let mut state = self.lock();
        state.record_cancel(job, true);
        self.step(&mut state, Event::Forget { job });
    }

    /// Does so when the grant ends, if a worker has the job's slot then.
    fn forget_later(self: &Arc<Self>, job: JobId, grant: GrantEnd) {
        if !self.is_in_worker(job) {
            return;
        }
        // Without a runtime the server is about to end, and its workers with it.
        let Ok(runtime) = Handle::try_current() else { return };
        let dispatcher = self.clone();
        runtime.spawn(async move {
            while dispatcher.is_in_worker(job) {
                if tokio::time::timeout(SLOT_LOOK, grant.comes()).await.is_ok() {
                    return dispatcher.forget(job);
                }
            }
        });
    }

    fn is_in_worker(&self, job: JobId) -> bool {
        let state = self.lock();
        let mut serving = state.workers.values().filter_map(|worker| worker.serving.as_ref());
        serving.any(|serving| serving.slots.of(job).is_some())
    }
}
