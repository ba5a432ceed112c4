//! Which job runs next. For each model: of the best class, the first job of the client that has had the least device
//! time for its weight; a class that had nothing started for long enough comes first once. Between models whose workers
//! need the same cores: the same. Between models that need a worker: the one whose first job came first.

use crate::ids::{JobId, ModelId};
use crate::queue::Rank;
use crate::state::{Model, Scheduler};

impl Scheduler {
    /// The job of this model that runs next, and where it stands among those of others.
    pub(crate) fn next_job(&self, model: &Model) -> Option<(Rank, JobId)> {
        let values = self.config.values();
        model.queue.next(values.order, self.now, values.aging)
    }

    /// Models that somebody waits for, in the order in which they get new workers.
    pub(crate) fn waited_for(&self) -> Vec<ModelId> {
        let waited = self.models.iter().filter_map(|(id, model)| Some((model.waited_for()?, *id)));
        let mut models: Vec<(u64, ModelId)> = waited.collect();
        models.sort_unstable();
        models.into_iter().map(|(_, model)| model).collect()
    }
}
