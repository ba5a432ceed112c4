//! Whether a job is taken: every bound that is stated for it, before anything is spent on it.

use crate::action::{Action, Outcome, Refusal};
use crate::event::Submit;
use crate::explain::{Past, Rule};
use crate::ids::{ClientId, Time, WorkerId};
use crate::state::{Footprint, Job, Model, Phase, Scheduler, elapsed_us};
use std::time::Duration;

/// Told to a client where no job has been measured yet.
const RETRY_UNMEASURED: Duration = Duration::from_secs(1);

/// The shortest wait that a client is told.
const RETRY_MIN: Duration = Duration::from_millis(10);

/// Where an accepted job goes.
enum Admitted {
    Queue,
    IdleWorker(WorkerId),
}

impl Scheduler {
    pub(crate) fn submit(&mut self, submit: &Submit) {
        assert!(!self.jobs.contains_key(&submit.job), "a job's number is used once");
        match self.admission(submit) {
            Err(refusal) => {
                // A canary that finds its worker at work was refused nothing.
                if !submit.canary {
                    self.count_submitted(submit.client);
                    self.count_refusal(submit.client, refusal.code());
                }
                self.remember_refusal(submit, &refusal);
                self.emit(
                    Action::End { job: submit.job, outcome: Outcome::Refused(refusal) },
                    Rule::Admission,
                );
            }
            Ok(admitted) => self.accept(submit, &admitted),
        }
    }

    fn remember_refusal(&mut self, submit: &Submit, refusal: &Refusal) {
        let past = Past {
            client: submit.client,
            model: submit.model,
            submitted: self.now,
            replays: 0,
            at: self.now,
            outcome: Outcome::Refused(refusal.clone()),
            rule: Rule::Admission,
            started: None,
            device_us: 0,
        };
        self.remember(submit.job, past);
    }

    fn accept(&mut self, submit: &Submit, admitted: &Admitted) {
        self.count_submitted(submit.client);
        let job = Job {
            client: submit.client,
            model: submit.model,
            deadline: submit.deadline,
            tokens: submit.tokens,
            tokens_bound: submit.tokens_bound,
            canary: submit.canary,
            live: submit.live,
            submitted: self.now,
            arrival: self.arrive(),
            deaths: 0,
            replays: 0,
            excused: 0,
            worker: None,
            started: None,
        };
        self.jobs.insert(submit.job, job);
        if !submit.canary {
            self.open_bill(submit);
        }
        if let Some(deadline) = submit.deadline {
            self.deadlines.insert((deadline, submit.job));
        }
        match admitted {
            Admitted::Queue => self.enqueue(submit.job),
            Admitted::IdleWorker(worker) => self.start(submit.job, *worker, Rule::Canary),
        }
    }

    fn admission(&self, submit: &Submit) -> Result<Admitted, Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        let model =
            self.models.get(&submit.model).filter(|model| !model.removed).ok_or(Refusal::UnknownModel)?;
        if let Some((cause, retry_after)) = self.broken(model) {
            return Err(Refusal::ModelBroken { cause, retry_after });
        }
        self.fits_budgets(&model.config)?;
        fits_lease(model, submit.tokens_bound)?;
        if submit.canary {
            self.meets(submit.deadline, Duration::ZERO)?;
            return self.idle_worker(model).map(Admitted::IdleWorker).ok_or(Refusal::NotIdle);
        }
        self.queues_have_room(submit, model)?;
        self.meets(submit.deadline, self.wait(model, submit.client))?;
        match self.rate_limit(submit) {
            Some(limit) => Err(Refusal::RateLimited(limit)),
            None => Ok(Admitted::Queue),
        }
    }

    fn queues_have_room(&self, submit: &Submit, model: &Model) -> Result<(), Refusal> {
        let retry_after = self.until_one_leaves(model);
        let ahead = self.ahead(model, submit.client);
        let values = self.config.values();
        let of_client = self.clients.get(&submit.client).map_or(0, |client| client.waiting);
        if self.waiting >= values.queue_total_max {
            return Err(Refusal::QueueFullTotal { most: values.queue_total_max, ahead, retry_after });
        }
        let most = self.client_values(submit.client).queue_max;
        if of_client >= most {
            return Err(Refusal::QueueFullClient { most, ahead, retry_after });
        }
        if model.queue.len() >= model.config.queue_max as usize {
            return Err(Refusal::QueueFullModel { most: model.config.queue_max, ahead, retry_after });
        }
        Ok(())
    }

    fn meets(&self, deadline: Option<Time>, estimate: Duration) -> Result<(), Refusal> {
        match deadline {
            Some(deadline) if self.now + estimate >= deadline => {
                Err(Refusal::DeadlineUnmeetable { estimate, deadline: deadline.since(self.now) })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// How long a new job will wait, as far as that is known: the measured time of the jobs ahead, and the rest of a
    /// load that runs. Zero where it would be a guess, so that a job with a short deadline can always start what
    /// is then measured.
    fn wait(&self, model: &Model, client: ClientId) -> Duration {
        let ready = self.active(model).filter(|(_, worker)| worker.phase == Phase::Ready).count() as u64;
        let ahead = self.ahead(model, client).saturating_mul(model.job_time.micros()) / ready.max(1);
        let load = if ready == 0 { self.rest_of_load(model) } else { 0 };
        Duration::from_micros(ahead.saturating_add(load))
    }

    pub(crate) fn rest_of_load(&self, model: &Model) -> u64 {
        let rest = |spawned| model.load_time.micros().saturating_sub(elapsed_us(self.now, spawned));
        self.active(model).map(|(_, worker)| rest(worker.spawned)).min().unwrap_or(0)
    }

    fn until_one_leaves(&self, model: &Model) -> Duration {
        let workers = self.active(model).count().max(1) as u32;
        model.job_time.duration().map_or(RETRY_UNMEASURED, |time| (time / workers).max(RETRY_MIN))
    }

    /// The ready worker without work that was not heard of for longest, so that each one is probed in turn.
    fn idle_worker(&self, model: &Model) -> Option<WorkerId> {
        if !model.queue.is_empty() {
            return None;
        }
        let idle = self.active(model).filter(|(_, worker)| worker.is_idle());
        idle.min_by_key(|(id, worker)| (worker.heard, *id)).map(|(id, _)| id)
    }
}

/// Whether a job's largest step fits beside what the loaded model takes. Unknown until a worker was ready once.
pub(crate) fn fits_lease(model: &Model, tokens_bound: u64) -> Result<(), Refusal> {
    let Some(Footprint { used_bytes, bytes_per_token }) = model.footprint else { return Ok(()) };
    let wanted = used_bytes.saturating_add(bytes_per_token.saturating_mul(tokens_bound));
    let lease = model.config.tensors_lease_bytes();
    if wanted <= lease { Ok(()) } else { Err(Refusal::JobTooLargeForLease { wanted, lease }) }
}
