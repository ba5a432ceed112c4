//! What the audit log says of grants.

use super::{GrantService, Holder, Live};
use crate::audit::{AuditError, Lane, Masker, Who};
use ringfence_audit::{Access, Decider, Decision as Decided, Event, Word};
use ringfence_grants::{Ask, Audience, Change, Decision, GrantId, Kind, RelativePath, State};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{OnceCell, oneshot};

/// A question, and who puts it.
#[derive(Debug)]
pub(crate) struct Asking {
    pub(crate) ask: Ask,
    pub(crate) who: Who,
    /// Whether there is the model that it names: else the name is only the client's word.
    pub(crate) model_known: bool,
}

/// Why grants end.
#[derive(Clone, Copy)]
pub(super) enum Why<'a> {
    /// Their time, or the time for an answer, is over.
    Time,
    /// Somebody took them back, or their file service ended.
    TakenBack(Option<&'a Who>),
}

impl GrantService {
    pub(super) async fn record_question(&self, id: GrantId, asking: &Asking) -> Result<(), AuditError> {
        let Asking { ask, who, model_known } = asking;
        let (ask, model_known) = (ask.clone(), *model_known);
        let requested = move |masker: &mut Masker<'_>| Event::GrantRequested {
            grant: id.0,
            access: match ask.kind {
                Kind::FileRead => Access::FileRead,
                Kind::FileWrite => Access::FileWrite,
                Kind::AudioCapture => Access::AudioCapture,
            },
            path: masker.mask(&ask.path),
            audience: match &ask.audience {
                Audience::Model(model) => masker.model(model, model_known),
                Audience::Client => Word::lossy("client"),
            },
            reason: masker.mask(&ask.reason),
            lifetime_ms: ask.lifetime_ms,
            bytes_max: ask.bytes_max.min(ringfence_audit::NUMBER_MAX),
            snapshot: ask.snapshot,
        };
        self.audit.record(who, requested).await
    }

    pub(super) async fn record_rule(&self, id: GrantId, who: &Who, until_ms: u64) -> Result<(), AuditError> {
        let (decision, by, until_ms) = (Decided::Approved, Decider::Rule, Some(until_ms));
        let decided = move |_: &mut Masker<'_>| Event::GrantDecided { grant: id.0, decision, by, until_ms };
        self.audit.record(who, decided).await
    }

    /// Writes an answer down. A no counts also where it can't be.
    pub(super) async fn record_answer(
        &self,
        id: GrantId,
        who: &Who,
        decision: Decision,
        signed: bool,
        until_ms: u64,
    ) -> Result<(), AuditError> {
        let by = if signed { Decider::OperatorKey } else { Decider::Operator };
        let (decided, until_ms) = match decision {
            Decision::Approve { .. } => (Decided::Approved, Some(until_ms)),
            Decision::Deny => (Decided::Denied, None),
        };
        let event =
            move |_: &mut Masker<'_>| Event::GrantDecided { grant: id.0, decision: decided, by, until_ms };
        match (self.audit.record(who, event).await, decision) {
            (Err(error), Decision::Approve { .. }) => Err(error),
            (_, Decision::Approve { .. } | Decision::Deny) => Ok(()),
        }
    }

    pub(super) async fn record_narrowed(&self, id: GrantId, holder: &Holder<'_>) -> Result<(), AuditError> {
        let (path, from) = {
            let table = self.table();
            let grant = table.grant(id);
            let path = grant.map_or_else(String::new, |grant| joined(&grant.ask.path, &grant.path));
            (path, grant.and_then(|grant| grant.parent()).unwrap_or(id))
        };
        let narrowed = move |masker: &mut Masker<'_>| Event::GrantNarrowed {
            grant: id.0,
            from: from.0,
            path: masker.mask(&path),
        };
        self.audit.record(holder.who, narrowed).await
    }

    pub(super) async fn record_first_use(
        &self,
        id: GrantId,
        who: &Who,
        path: String,
    ) -> Result<(), AuditError> {
        let used = move |masker: &mut Masker<'_>| Event::GrantUsed { grant: id.0, path: masker.mask(&path) };
        self.audit.record(who, used).await
    }

    /// Says that nothing came of a question, or of an answer that is in the log already.
    pub(super) fn note_void(&self, id: GrantId, who: &Who, code: &'static str) {
        let closed = move |_: &mut Masker<'_>| Event::GrantClosed {
            grant: id.0,
            result: Word::lossy(code),
            uses: 0,
            bytes: 0,
        };
        self.audit.note(who, closed);
    }

    /// Puts the end of a grant into the log; what is returned waits until it is there.
    pub(super) async fn put_end(
        &self,
        Change { grant: id, state }: Change,
        why: Why<'_>,
        live: Option<&Live>,
    ) -> Option<oneshot::Receiver<Result<(), AuditError>>> {
        let who = match why {
            Why::TakenBack(Some(who)) => self.about(id, who),
            Why::Time | Why::TakenBack(None) => self.about(id, &Who::server()),
        };
        let uses = self.table().grant(id).map_or(0, |grant| grant.uses);
        let bytes = live.map_or(0, |live| live.moved.load(Ordering::Relaxed));
        let closed =
            |result: &str| Event::GrantClosed { grant: id.0, result: Word::lossy(result), uses, bytes };
        let event = match (state, why) {
            (State::Denied, Why::Time) => {
                let (decision, by) = (Decided::Denied, Decider::Nobody);
                Event::GrantDecided { grant: id.0, decision, by, until_ms: None }
            }
            (State::Denied | State::Pending, _) => closed("withdrawn"),
            (State::Expired, _) => closed("expired"),
            (State::Revoked | State::Live, _) => closed("revoked"),
        };
        let place = self.audit.place(Lane::Act).await.ok()?;
        let (done, when_done) = oneshot::channel();
        let tell = move |written| {
            // Who does not wait any more does not hear it.
            let _unheard = done.send(written);
        };
        self.audit.put(place, &who, move |_| event, tell);
        Some(when_done)
    }

    /// Who acts on a grant, with the client whose grant it is: an export of one client's entries has them.
    pub(super) fn about(&self, id: GrantId, who: &Who) -> Who {
        let client = self.table().grant(id).map(|grant| grant.ask.client.clone());
        Who { client: client.or_else(|| who.client.clone()), ..who.clone() }
    }

    /// Of a live grant: whether its first use is in the log, and the bytes that it moved.
    pub(super) fn live(&self, id: GrantId) -> (Arc<OnceCell<()>>, Arc<AtomicU64>) {
        let lives = self.lives();
        // One that has just ended gives nothing any more.
        lives.get(&id).map(|live| (live.used.clone(), live.moved.clone())).unwrap_or_default()
    }

    /// A path below a root as the owner of the files knows it.
    pub(super) fn whole_path(&self, root: GrantId, path: &RelativePath) -> String {
        let table = self.table();
        joined(table.grant(root).map_or("", |grant| grant.ask.path.as_str()), path)
    }
}

fn joined(root: &str, path: &RelativePath) -> String {
    if path.is_root() { root.to_owned() } else { format!("{root}/{path}") }
}
