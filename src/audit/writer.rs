//! The thread that owns the log.

use super::{AuditError, Done, Item, Place, Queue, Shared, Who};
use crate::clock;
use ringfence_audit::{Entry, Event, Folder, Log, LogError, Masked, Word};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it looks what is due where nothing comes.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often refusals become entries.
const REFUSALS_EVERY: Duration = Duration::from_secs(1);
/// How often old entries are pruned.
const PRUNE_EVERY: Duration = Duration::from_secs(24 * 3_600);
const DAY_MS: u64 = 24 * 3_600 * 1_000;

/// Masks names while an entry is made.
pub(crate) struct Masker<'a>(&'a mut Log<Folder>);

impl Masker<'_> {
    /// The mask of a name, path or reason; the owner can read it again.
    pub(crate) fn mask(&mut self, plain: &str) -> Masked {
        self.0.mask(plain)
    }

    /// A model's name: as it is where there is such a model, masked where it is only a client's word.
    pub(crate) fn model(&mut self, name: &str, known: bool) -> Word {
        if known { Word::lossy(name) } else { Word::lossy(&self.mask(name).to_string()) }
    }
}

/// The log, and when something is due.
pub(super) struct Writer {
    log: Log<Folder>,
    shared: Arc<Shared>,
    keep_days: Option<u64>,
    refusals_taken: Instant,
    pruned: Instant,
    second_failed: bool,
}

impl Writer {
    pub(super) fn new(log: Log<Folder>, shared: Arc<Shared>, keep_days: Option<u64>) -> Self {
        let now = clock::instant();
        Self { log, shared, keep_days, refusals_taken: now, pruned: now, second_failed: false }
    }

    /// Until the server ends. After a failed write it goes on only to tell those who come.
    pub(super) fn run(mut self) {
        loop {
            if self.refusals_taken.elapsed() >= REFUSALS_EVERY {
                self.refusals_taken = clock::instant();
                self.shared.put_refusals(&mut self.shared.queue());
            }
            let Queue { items, ending, .. } = self.shared.take(LOOK_EVERY);
            self.write(items);
            self.look_after(ending);
            if ending {
                return;
            }
        }
    }

    /// Appends all, makes it durable at once, and tells who waits.
    fn write(&mut self, items: Vec<Item>) {
        let mut waiting: Vec<(Option<Done>, Option<Place>)> = Vec::with_capacity(items.len());
        for Item { time_ms, who, build, done, _place: place } in items {
            match self.append(time_ms, &who, |masker| build(masker)) {
                Ok(()) => waiting.push((done, place)),
                Err(error) => tell(done, Err(self.failed(&error))),
            }
        }
        if waiting.is_empty() {
            return;
        }
        let written = self.log.commit().map(drop).map_err(|error| self.failed(&error));
        for (done, _place) in waiting {
            tell(done, written);
        }
        let left_out = self.log.names_left_out();
        let mut view = self.shared.view();
        view.entries = self.log.size();
        if left_out > 0 && view.names_left_out == 0 {
            tracing::error!(
                "the audit log's map of names is full: new names are masked only; prune old entries"
            );
        }
        view.names_left_out = left_out;
    }

    fn append(
        &mut self,
        time_ms: u64,
        who: &Who,
        build: impl FnOnce(&mut Masker<'_>) -> Event,
    ) -> Result<(), LogError> {
        let event = build(&mut Masker(&mut self.log));
        let word = |text: &Option<String>| text.as_deref().map(Word::lossy);
        let entry = Entry {
            time_ms,
            clock: None,
            run: self.shared.run.clone(),
            request: word(&who.request),
            session: word(&who.session),
            client: who.client.as_deref().map(|name| self.log.mask(name)),
            uid: who.uid,
            event,
        };
        match self.log.append(entry.clone()) {
            Err(LogError::Full) => {
                self.log.commit()?;
                self.log.checkpoint()?;
                self.log.append(entry).map(drop)
            }
            appended => appended.map(drop),
        }
    }

    /// Signs and prunes what is due; at the end in any case.
    fn look_after(&mut self, ending: bool) {
        let now_ms = clock::moment().wall_ms;
        if ending || self.log.checkpoint_due(now_ms) {
            match self.log.checkpoint() {
                Ok(checkpoint) => {
                    let mut view = self.shared.view();
                    (view.covered, view.checkpoint_ms) = (checkpoint.size, Some(now_ms));
                }
                Err(error) => drop(self.failed(&error)),
            }
            self.look_at_second();
        }
        if self.pruned.elapsed() >= PRUNE_EVERY
            && let Err(error) = self.prune()
        {
            self.failed(&error);
        }
    }

    /// Says once that checkpoints don't reach the second place, and once that they do again.
    fn look_at_second(&mut self) {
        let failure = self.log.second_error().map(ToString::to_string);
        match &failure {
            Some(error) if !self.second_failed => {
                tracing::error!(error, "a checkpoint is not in the second place");
            }
            None if self.second_failed => tracing::info!("checkpoints reach the second place again"),
            Some(_) | None => {}
        }
        self.second_failed = failure.is_some();
        self.shared.view().second_failure = failure;
    }

    /// Removes entries that are older than the operator wants to keep them.
    pub(super) fn prune(&mut self) -> Result<(), LogError> {
        self.pruned = clock::instant();
        let Some(days) = self.keep_days else { return Ok(()) };
        let now_ms = clock::moment().wall_ms;
        let before = self.log.older_than(now_ms.saturating_sub(days.saturating_mul(DAY_MS)))?;
        let pruned = self.log.prune(before, now_ms, self.shared.run.clone())?;
        if pruned > 0 {
            tracing::info!(pruned, days, "old entries of the audit log are pruned; their hashes stay");
        }
        Ok(())
    }

    /// Sorts an error: one entry's own, or the log's end until the next start.
    fn failed(&self, error: &LogError) -> AuditError {
        match error {
            LogError::Entry(error) => {
                tracing::error!(%error, "an entry can't be written to the audit log");
                AuditError::Entry
            }
            LogError::Poisoned => AuditError::Unavailable,
            LogError::Full | LogError::Io { .. } | LogError::Fault(_) => {
                if self.shared.failure.set(error.to_string()).is_ok() {
                    tracing::error!(%error, "the audit log failed: nothing is granted, run or changed until a restart");
                }
                AuditError::Unavailable
            }
        }
    }
}

fn tell(done: Option<Done>, written: Result<(), AuditError>) {
    if let Some(done) = done {
        done(written);
    }
}
