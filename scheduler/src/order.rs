//! Which job runs next: for each model the one that came first; between models that need a worker, the one whose
//! first job came first.

use crate::ids::{JobId, ModelId};
use crate::state::{Model, Scheduler};

impl Scheduler {
    /// The job of this model that runs next.
    pub(crate) fn next_job(model: &Model) -> Option<JobId> {
        model.queue.first().map(|(_, job)| *job)
    }

    /// Models that somebody waits for, in the order in which they get new workers.
    pub(crate) fn waited_for(&self) -> Vec<ModelId> {
        let waited = self.models.iter().filter_map(|(id, model)| Some((model.waited_for()?, *id)));
        let mut models: Vec<(u64, ModelId)> = waited.collect();
        models.sort_unstable();
        models.into_iter().map(|(_, model)| model).collect()
    }
}
