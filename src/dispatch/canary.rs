//! Health by asking: a small job for each loaded model that has not answered for a while.

use super::job::{JobInput, JobRequest, Purpose};
use super::{Dispatcher, SYSTEM};
use crate::audit::Who;
use crate::clock;
use ringfence_protocol::{EmbedInput, Item};
use ringfence_scheduler::ModelId;
use std::sync::Arc;
use std::time::Duration;

/// A loaded model is asked when its last answer is this old.
const PERIOD: Duration = Duration::from_secs(10);

/// How often it is looked which models are due.
const LOOK: Duration = Duration::from_secs(1);

/// How long a canary may take before its model counts as failing.
const ANSWER_MAX: Duration = Duration::from_secs(10);

impl Dispatcher {
    /// Sends canaries for as long as the server runs.
    pub(crate) async fn keep_asking(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            for (model, name) in self.due() {
                tokio::spawn(self.clone().ask(model, name));
            }
        }
    }

    /// Loaded models without an answer for a period. The scheduler refuses a canary where a job runs: that job's step
    /// limit finds a worker that hangs.
    fn due(&self) -> Vec<(ModelId, String)> {
        let state = self.lock();
        let snapshot = state.scheduler.snapshot();
        let now = clock::instant();
        let due = state.models.iter().filter(|(id, model)| {
            let loaded = snapshot.models.iter().any(|now| now.model == *id && now.ready > 0);
            let answered = model.health.answered;
            loaded && answered.is_none_or(|at| now.duration_since(at) >= PERIOD)
        });
        due.map(|(id, model)| (id, model.name.clone())).collect()
    }

    async fn ask(self: Arc<Self>, model: ModelId, name: String) {
        let request = JobRequest {
            client: SYSTEM.to_owned(),
            request_id: "canary".to_owned(),
            who: Who::server(),
            model: name.clone(),
            input: JobInput::Items(EmbedInput {
                items: vec![Item::Text("canary".to_owned())],
                truncate: true,
            }),
            received: clock::instant(),
            deadline: Some(ANSWER_MAX),
            dimensions: None,
            purpose: Purpose::Canary,
        };
        if let Err(error) = self.run(request).await {
            // A worker with work is not asked; its step limit decides whether it hangs.
            if error.code() != "not_idle" && error.code() != "draining" && error.code() != "model_unknown" {
                tracing::warn!(model = name, code = error.code(), "canary failed");
                self.lock().models.canary_failed(model);
            }
        }
    }
}
