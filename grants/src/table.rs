//! Every grant with its state, and every decision about one.

use crate::ask::{Ask, AskRefusal, Audience, Kind, Narrower, Shown, ShownKind};
use crate::capability::{AudioCapture, FileRead, FileWrite};
use crate::path::{PathRefusal, RelativePath};
use crate::rules::{Rules, Verdict};
use crate::source::Source;
use crate::string::{self, CapabilityString, RUN_BYTES, SECRET_BYTES, SecretHash, StringRefusal};
use crate::{
    ANSWER_WAIT_MS, DEPTH_MAX, ENDED_MAX, GRANTS_MAX, GRANTS_PER_CLIENT_MAX, Moment, PENDING_PER_CLIENT_MAX,
    QUESTION_EVERY_MS, QUESTIONS_BURST, WALL_STEP_MS_MAX,
};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// A grant's number, counted anew in each run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantId(pub u64);

/// Where a grant stands. There are no others, and none leads back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits for an answer.
    Pending,
    /// It may be used.
    Live,
    /// Its time is over.
    Expired,
    /// It was taken back, by whoever may, or with its client.
    Revoked,
    /// Somebody, a rule or the end of the wait said no.
    Denied,
}

/// A grant.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Its number.
    pub id: GrantId,
    /// What was asked for; of a narrowed one, what is left of that.
    pub ask: Ask,
    /// Where it stands.
    pub state: State,
    /// What the path turned out to be.
    pub shown: Option<Shown>,
    /// When it was asked for.
    pub asked: Moment,
    /// When it was approved, or narrowed.
    pub since: Option<Moment>,
    /// Its end.
    pub until: Option<Moment>,
    /// The grant whose root it is below: itself, unless it was narrowed from another.
    pub root: GrantId,
    /// Below that root.
    pub path: RelativePath,
    /// How often it was used.
    pub uses: u64,
    /// Bytes that were moved, and that may yet be by uses that have not ended.
    pub bytes: u64,
    parent: Option<GrantId>,
    depth: u8,
    secret: Option<SecretHash>,
}

/// A change that the server has to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub grant: GrantId,
    /// What it is now.
    pub state: State,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Approver {
    /// The uid of the process, as the kernel states it; none if it is of another user namespace.
    pub uid: Option<u32>,
    /// Whether it has proven that it holds the operator's key.
    pub operator: bool,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes, for as long as was asked or for less, in milliseconds.
    Approve {
        /// At most.
        lifetime_ms: Option<u64>,
    },
    /// No.
    Deny,
}

/// Why an answer does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecideRefusal {
    /// No such grant, or it is long over.
    #[error("there is no such grant")]
    Unknown,
    /// It has been answered.
    #[error("the grant is not pending any more")]
    NotPending,
    /// Nobody knows yet what would be granted.
    #[error("what is asked for has not been opened yet")]
    NotShown,
    /// Whoever asks can't answer.
    #[error("nobody approves what he has asked for himself: the operator's key is needed")]
    SelfApproval,
    /// Zero, or more than was asked for.
    #[error("the lifetime must be from 1 ms to what was asked for")]
    Lifetime,
}

/// A use: the string, and who presents it where.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// The capability string.
    pub string: &'a str,
    /// Who presents it.
    pub client: &'a str,
    /// Where the bytes would go.
    pub audience: &'a Audience,
}

/// Why a use is refused. [`Refusal::code`] is stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The string is none.
    #[error(transparent)]
    String(#[from] StringRefusal),
    /// Of the form and of this run, but nobody was given it, or its grant is long over.
    #[error("the capability string names no grant")]
    Unknown,
    /// Given to somebody else.
    #[error("the capability string was given to another client")]
    WrongHolder,
    /// For another destination of the bytes.
    #[error("the grant is for another audience")]
    WrongAudience,
    /// Over.
    #[error("the grant has expired")]
    Expired,
    /// Taken back.
    #[error("the grant was revoked")]
    Revoked,
    /// Used as often, or for as many bytes, as it may be.
    #[error("the grant is used up")]
    UsedUp,
    /// Not what was granted.
    #[error("that is not what was granted")]
    OutOfScope,
    /// No path below a root.
    #[error("the path is refused: {0}")]
    Path(PathRefusal),
    /// The wall clock is before the grant's approval.
    #[error("the clock was turned back: the grant counts again when it is right")]
    ClockTurnedBack,
}

impl Refusal {
    /// For programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::String(StringRefusal::Malformed) => "capability_malformed",
            Self::String(StringRefusal::OtherRun) => "capability_of_another_run",
            Self::Unknown => "capability_unknown",
            Self::WrongHolder => "capability_wrong_holder",
            Self::WrongAudience => "capability_wrong_audience",
            Self::Expired => "grant_expired",
            Self::Revoked => "grant_revoked",
            Self::UsedUp => "grant_used_up",
            Self::OutOfScope => "grant_out_of_scope",
            Self::Path(_) => "grant_path_refused",
            Self::ClockTurnedBack => "clock_turned_back",
        }
    }
}

/// Why a grant can't be narrowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NarrowRefusal {
    /// It can't be used either.
    #[error(transparent)]
    Use(#[from] Refusal),
    /// Something of it would be more than there is.
    #[error("`{0}` would be more than what the grant has")]
    Wider(&'static str),
    /// Narrowed from narrowed too often.
    #[error("a grant can be narrowed {DEPTH_MAX} times, one from the other")]
    TooDeep,
    /// No room.
    #[error(transparent)]
    Full(AskRefusal),
}

/// How often a client has asked.
#[derive(Clone, Copy, Debug)]
struct Questions {
    /// When it will have asked nothing, if it asks no more.
    clear_boot_ms: u64,
}

/// All grants of one run of the server.
#[derive(Debug)]
pub struct Grants {
    run: [u8; RUN_BYTES],
    next: u64,
    /// Pending and live ones.
    open: BTreeMap<GrantId, Grant>,
    /// Ended ones, oldest first.
    ended: VecDeque<Grant>,
    by_secret: HashMap<SecretHash, GrantId>,
    questions: HashMap<String, Questions>,
}

impl Grants {
    /// None yet. `run` is random, and names this run of the server in every string.
    pub fn new(run: [u8; RUN_BYTES]) -> Self {
        Self {
            run,
            next: 1,
            open: BTreeMap::new(),
            ended: VecDeque::new(),
            by_secret: HashMap::new(),
            questions: HashMap::new(),
        }
    }

    /// Takes a question. Even where a rule allows it, it stays pending until [`Grants::shown`] says what it is about.
    ///
    /// # Errors
    /// It can't be put, or a rule denies it.
    pub fn ask(&mut self, now: Moment, ask: Ask, rules: &Rules) -> Result<GrantId, AskRefusal> {
        ask.check()?;
        self.room(&ask.client)?;
        match rules.verdict(now, &ask) {
            Verdict::Deny => return Err(AskRefusal::Rule),
            Verdict::Ask => self.may_question(now, &ask.client)?,
            Verdict::Allow => {}
        }
        let id = self.number();
        let grant = Grant {
            id,
            ask,
            state: State::Pending,
            shown: None,
            asked: now,
            since: None,
            until: None,
            root: id,
            path: RelativePath::default(),
            uses: 0,
            bytes: 0,
            parent: None,
            depth: 0,
            secret: None,
        };
        self.open.insert(id, grant);
        Ok(id)
    }

    fn number(&mut self) -> GrantId {
        let id = GrantId(self.next);
        self.next += 1;
        id
    }

    fn room(&self, client: &str) -> Result<(), AskRefusal> {
        if self.open.len() >= GRANTS_MAX {
            return Err(AskRefusal::Full(GRANTS_MAX));
        }
        let own = self.open.values().filter(|grant| grant.ask.client == client).count();
        if own >= GRANTS_PER_CLIENT_MAX { Err(AskRefusal::Full(GRANTS_PER_CLIENT_MAX)) } else { Ok(()) }
    }

    /// Somebody's attention is the resource: few questions wait at a time, and they come at a bounded rate.
    fn may_question(&mut self, now: Moment, client: &str) -> Result<(), AskRefusal> {
        let waits = |grant: &&Grant| grant.state == State::Pending && grant.ask.client == client;
        if self.open.values().filter(waits).count() >= PENDING_PER_CLIENT_MAX {
            return Err(AskRefusal::TooManyPending(PENDING_PER_CLIENT_MAX));
        }
        self.questions.retain(|_, questions| questions.clear_boot_ms > now.boot_ms);
        let clear = self.questions.get(client).map_or(now.boot_ms, |questions| questions.clear_boot_ms);
        let burst = u64::from(QUESTIONS_BURST) * QUESTION_EVERY_MS;
        let after = clear + QUESTION_EVERY_MS;
        if after > now.boot_ms + burst {
            return Err(AskRefusal::TooOften { retry_ms: after - now.boot_ms - burst });
        }
        self.questions.insert(client.to_owned(), Questions { clear_boot_ms: after });
        Ok(())
    }

    /// What the path of a pending grant turned out to be. Live at once where a rule allows it.
    ///
    /// # Errors
    /// It is not pending, or that was said before.
    pub fn shown(
        &mut self,
        now: Moment,
        id: GrantId,
        shown: Shown,
        rules: &Rules,
    ) -> Result<State, DecideRefusal> {
        let grant = self.pending(id)?;
        if grant.shown.is_some() {
            return Err(DecideRefusal::NotPending);
        }
        grant.shown = Some(shown);
        if rules.verdict(now, &grant.ask) == Verdict::Allow {
            grant.live(now, grant.ask.lifetime_ms);
        }
        Ok(grant.state)
    }

    fn pending(&mut self, id: GrantId) -> Result<&mut Grant, DecideRefusal> {
        let ended = self.ended.iter().any(|grant| grant.id == id);
        let grant = self.open.get_mut(&id).ok_or(if ended {
            DecideRefusal::NotPending
        } else {
            DecideRefusal::Unknown
        })?;
        if grant.state == State::Pending { Ok(grant) } else { Err(DecideRefusal::NotPending) }
    }

    /// Whether an answer would count, without giving it: so that it can be written down before. For how long the grant
    /// would live; 0 where it would not.
    ///
    /// # Errors
    /// It would not count.
    pub fn would_decide(
        &mut self,
        id: GrantId,
        decision: Decision,
        by: Approver,
    ) -> Result<u64, DecideRefusal> {
        let grant = self.pending(id)?;
        match decision {
            Decision::Deny => Ok(0),
            Decision::Approve { lifetime_ms } => {
                // One who asks over TCP, or from where no uid is known, may be anybody.
                let own = grant.ask.uid.is_none() || by.uid.is_none() || grant.ask.uid == by.uid;
                if own && !by.operator {
                    return Err(DecideRefusal::SelfApproval);
                }
                if grant.shown.is_none() {
                    return Err(DecideRefusal::NotShown);
                }
                let lifetime = lifetime_ms.unwrap_or(grant.ask.lifetime_ms);
                if !(1..=grant.ask.lifetime_ms).contains(&lifetime) {
                    return Err(DecideRefusal::Lifetime);
                }
                Ok(lifetime)
            }
        }
    }

    /// Answers a question.
    ///
    /// # Errors
    /// The answer does not count; the grant stays as it is.
    pub fn decide(
        &mut self,
        now: Moment,
        id: GrantId,
        decision: Decision,
        by: Approver,
    ) -> Result<&Grant, DecideRefusal> {
        let lifetime_ms = self.would_decide(id, decision, by)?;
        match decision {
            Decision::Deny => {
                self.end(id, State::Denied);
                Ok(self.ended.back().expect("it has just ended"))
            }
            Decision::Approve { .. } => {
                let grant = self.open.get_mut(&id).expect("a pending grant is open");
                grant.live(now, lifetime_ms);
                Ok(grant)
            }
        }
    }

    /// The holder's string for a live grant, once: `secret` is random and becomes it.
    pub fn claim(
        &mut self,
        id: GrantId,
        client: &str,
        secret: &[u8; SECRET_BYTES],
    ) -> Option<CapabilityString> {
        let grant = self.open.get_mut(&id)?;
        if grant.state != State::Live || grant.secret.is_some() || grant.ask.client != client {
            return None;
        }
        let hash = string::hash_of(secret);
        grant.secret = Some(hash);
        self.by_secret.insert(hash, id);
        Some(CapabilityString::new(self.run, secret))
    }

    /// Decides one use of a path below the grant's own, for reading `bytes` at most; less if the grant has no more.
    ///
    /// # Errors
    /// It is refused.
    pub fn read(
        &mut self,
        now: Moment,
        by: Presented<'_>,
        path: &str,
        bytes: u64,
    ) -> Result<FileRead, Refusal> {
        let Use { grant, root, path, until_boot_ms, bytes_max, snapshot } =
            self.take(now, by, Kind::FileRead, path, bytes)?;
        Ok(FileRead { grant, root, path, until_boot_ms, bytes_max, snapshot })
    }

    /// The same for writing.
    ///
    /// # Errors
    /// It is refused.
    pub fn write(
        &mut self,
        now: Moment,
        by: Presented<'_>,
        path: &str,
        bytes: u64,
    ) -> Result<FileWrite, Refusal> {
        let Use { grant, root, path, until_boot_ms, bytes_max, snapshot } =
            self.take(now, by, Kind::FileWrite, path, bytes)?;
        Ok(FileWrite { grant, root, path, until_boot_ms, bytes_max, snapshot })
    }

    /// Decides one capture of sound, from its start to its end; what the rules want done to it comes along.
    ///
    /// # Errors
    /// It is refused.
    pub fn capture(
        &mut self,
        now: Moment,
        by: Presented<'_>,
        rules: &Rules,
    ) -> Result<AudioCapture, Refusal> {
        let id = self.usable(now, by)?;
        let grant = &self.open[&id];
        if grant.ask.kind != Kind::AudioCapture {
            return Err(Refusal::OutOfScope);
        }
        let source = Source::parse(&grant.ask.path).map_err(|_| Refusal::OutOfScope)?;
        let transforms = rules.transforms(now, &grant.ask).to_vec();
        let until_boot_ms = grant.until.map_or(0, |until| until.boot_ms);
        let chain = self.chain(id);
        self.count_use(&chain)?;
        Ok(AudioCapture { grant: id, source, until_boot_ms, transforms })
    }

    /// Counts one use of a grant and of all that it was narrowed from.
    fn count_use(&mut self, chain: &[GrantId]) -> Result<(), Refusal> {
        let used_up = |id: &GrantId| {
            let grant = &self.open[id];
            grant.ask.uses_max.is_some_and(|most| grant.uses >= u64::from(most))
        };
        if chain.iter().any(used_up) {
            return Err(Refusal::UsedUp);
        }
        for id in chain {
            self.open.get_mut(id).expect("a chain is of open ones").uses += 1;
        }
        Ok(())
    }

    fn take(
        &mut self,
        now: Moment,
        by: Presented<'_>,
        kind: Kind,
        path: &str,
        bytes: u64,
    ) -> Result<Use, Refusal> {
        let id = self.usable(now, by)?;
        let path = RelativePath::new(path).map_err(Refusal::Path)?;
        let grant = &self.open[&id];
        let of_file = grant.shown.as_ref().is_some_and(|shown| shown.kind == ShownKind::File);
        if grant.ask.kind != kind || (of_file && !path.is_root()) {
            return Err(Refusal::OutOfScope);
        }
        let path = grant.path.join(&path).map_err(Refusal::Path)?;
        let (root, snapshot) = (grant.root, grant.ask.snapshot);
        let until_boot_ms = grant.until.map_or(0, |until| until.boot_ms);
        // What one that was narrowed uses counts for those that it came from: together they never have more.
        let chain = self.chain(id);
        let left = |id: &GrantId| self.open[id].ask.bytes_max - self.open[id].bytes;
        let bytes_max = chain.iter().map(left).fold(bytes, u64::min);
        if bytes_max == 0 {
            return Err(Refusal::UsedUp);
        }
        self.count_use(&chain)?;
        for id in &chain {
            // Held until the capability is given back.
            self.open.get_mut(id).expect("a chain is of open ones").bytes += bytes_max;
        }
        Ok(Use { grant: id, root, path, until_boot_ms, bytes_max, snapshot })
    }

    /// A grant and those that it was narrowed from, as far as they are open; they end together.
    fn chain(&self, id: GrantId) -> Vec<GrantId> {
        let parent = |id: &GrantId| self.open.get(id).and_then(|grant| grant.parent);
        std::iter::successors(Some(id), parent).filter(|id| self.open.contains_key(id)).collect()
    }

    /// The open grant that a string stands for, if it may be used by whom and where it is presented.
    fn usable(&mut self, now: Moment, by: Presented<'_>) -> Result<GrantId, Refusal> {
        let hash = string::parse(self.run, by.string)?;
        let Some(id) = self.by_secret.get(&hash).copied() else { return Err(Refusal::Unknown) };
        let grant = self.grant(id).ok_or(Refusal::Unknown)?;
        if grant.ask.client != by.client {
            return Err(Refusal::WrongHolder);
        }
        if grant.ask.audience != *by.audience {
            return Err(Refusal::WrongAudience);
        }
        match grant.state {
            State::Live => {}
            State::Expired => return Err(Refusal::Expired),
            State::Revoked | State::Denied | State::Pending => return Err(Refusal::Revoked),
        }
        if grant.since.is_some_and(|since| now.wall_ms.saturating_add(WALL_STEP_MS_MAX) < since.wall_ms) {
            return Err(Refusal::ClockTurnedBack);
        }
        if grant.is_over(now) { Err(Refusal::Expired) } else { Ok(id) }
    }

    /// Gives a capability back, with the bytes that it moved.
    pub fn spent(&mut self, used: impl Into<Spent>, bytes: u64) {
        let Spent { grant, bytes_max } = used.into();
        for id in self.chain(grant) {
            let grant = self.open.get_mut(&id).expect("a chain is of open ones");
            grant.bytes -= bytes_max.saturating_sub(bytes).min(grant.bytes);
        }
    }

    /// Keeps less from other uses, where a file turned out to have no more.
    pub fn hold_at_most(&mut self, read: &mut FileRead, bytes: u64) {
        let excess = read.bytes_max.saturating_sub(bytes);
        read.bytes_max -= excess;
        for id in self.chain(read.grant) {
            let grant = self.open.get_mut(&id).expect("a chain is of open ones");
            grant.bytes -= excess.min(grant.bytes);
        }
    }

    /// Makes a grant of less from a grant; it lives at once, and ends with the other at the latest. What is used on it counts
    /// for the other too.
    ///
    /// # Errors
    /// The other can't be used, or it would be more in some way.
    pub fn narrow(
        &mut self,
        now: Moment,
        by: Presented<'_>,
        narrower: &Narrower,
    ) -> Result<GrantId, NarrowRefusal> {
        let id = self.usable(now, by)?;
        let parent = self.open[&id].clone();
        self.room(&parent.ask.client).map_err(NarrowRefusal::Full)?;
        if parent.depth >= DEPTH_MAX {
            return Err(NarrowRefusal::TooDeep);
        }
        let left_ms = parent.until.map_or(0, |until| until.boot_ms.saturating_sub(now.boot_ms));
        let lifetime = within("lifetime", narrower.lifetime_ms, left_ms)?;
        let bytes_max = match (parent.ask.kind, narrower.bytes_max) {
            // Of sound there is a time, and no bytes.
            (Kind::AudioCapture, None) => 0,
            (_, wanted) => within("bytes_max", wanted, parent.ask.bytes_max)?,
        };
        let uses_max = match (narrower.uses_max, parent.ask.uses_max) {
            (None, most) => most,
            (Some(0), _) => return Err(NarrowRefusal::Wider("uses_max")),
            (Some(wanted), Some(most)) if wanted > most => return Err(NarrowRefusal::Wider("uses_max")),
            (Some(wanted), _) => Some(wanted),
        };
        let path = parent.path.join(&narrower.path).map_err(Refusal::Path)?;
        let is_one = parent.shown.as_ref().is_some_and(|shown| shown.kind != ShownKind::Folder);
        if is_one && !narrower.path.is_root() {
            return Err(NarrowRefusal::Wider("path"));
        }
        let child = self.number();
        let mut ask = parent.ask.clone();
        ask.lifetime_ms = lifetime;
        ask.bytes_max = bytes_max;
        ask.uses_max = uses_max;
        ask.snapshot &= !narrower.no_snapshot;
        let mut grant = Grant {
            id: child,
            ask,
            asked: now,
            path,
            uses: 0,
            bytes: 0,
            parent: Some(id),
            depth: parent.depth + 1,
            secret: None,
            ..parent
        };
        grant.live(now, lifetime);
        self.open.insert(child, grant);
        Ok(child)
    }

    /// Takes a grant back, with all that was narrowed from it. Those that ended, first the one itself.
    pub fn revoke(&mut self, id: GrantId) -> Vec<Change> {
        let Some(grant) = self.open.get(&id) else { return Vec::new() };
        let state = if grant.state == State::Pending { State::Denied } else { State::Revoked };
        self.end_with_children(id, state)
    }

    /// Takes everything back that a client has or has asked for.
    pub fn remove_client(&mut self, client: &str) -> Vec<Change> {
        let own: Vec<GrantId> =
            self.open.values().filter(|grant| grant.ask.client == client).map(|grant| grant.id).collect();
        self.questions.remove(client);
        own.into_iter().flat_map(|id| self.revoke(id)).collect()
    }

    /// What has ended by itself: grants whose time is over, and questions that nobody has answered.
    pub fn tick(&mut self, now: Moment) -> Vec<Change> {
        let over: Vec<(GrantId, State)> = self
            .open
            .values()
            .filter_map(|grant| match grant.state {
                State::Pending if now.boot_ms >= grant.answer_by() => Some((grant.id, State::Denied)),
                State::Live if grant.is_over(now) => Some((grant.id, State::Expired)),
                _ => None,
            })
            .collect();
        over.into_iter().flat_map(|(id, state)| self.end_with_children(id, state)).collect()
    }

    /// When [`Grants::tick`] has something to do next, by the boot clock in milliseconds.
    pub fn next_boot_ms(&self) -> Option<u64> {
        self.open
            .values()
            .filter_map(|grant| match grant.state {
                State::Pending => Some(grant.answer_by()),
                _ => grant.until.map(|until| until.boot_ms),
            })
            .min()
    }

    fn end_with_children(&mut self, id: GrantId, state: State) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut ending = vec![id];
        while let Some(id) = ending.pop() {
            if !self.open.contains_key(&id) {
                continue;
            }
            ending.extend(self.open.values().filter(|grant| grant.parent == Some(id)).map(|grant| grant.id));
            self.end(id, state);
            changes.push(Change { grant: id, state });
        }
        changes
    }

    fn end(&mut self, id: GrantId, state: State) {
        let Some(mut grant) = self.open.remove(&id) else { return };
        grant.state = state;
        self.ended.push_back(grant);
        if self.ended.len() > ENDED_MAX {
            let forgotten = self.ended.pop_front().and_then(|grant| grant.secret);
            forgotten.map(|hash| self.by_secret.remove(&hash));
        }
    }

    /// A grant that is open, or ended not long ago.
    pub fn grant(&self, id: GrantId) -> Option<&Grant> {
        self.open.get(&id).or_else(|| self.ended.iter().find(|grant| grant.id == id))
    }

    /// Open ones by number, then those that ended not long ago, oldest first.
    pub fn all(&self) -> impl Iterator<Item = &Grant> {
        self.open.values().chain(&self.ended)
    }

    /// How many are pending or live.
    pub fn open(&self) -> usize {
        self.open.len()
    }
}

impl Grant {
    /// The grant that it was narrowed from.
    pub fn parent(&self) -> Option<GrantId> {
        self.parent
    }

    fn live(&mut self, now: Moment, lifetime_ms: u64) {
        self.state = State::Live;
        self.since = Some(now);
        self.until = Some(now.after(lifetime_ms));
    }

    /// By either clock: a machine that slept counts, and so does a wall clock that was set forward.
    fn is_over(&self, now: Moment) -> bool {
        self.until.is_some_and(|until| now.boot_ms >= until.boot_ms || now.wall_ms >= until.wall_ms)
    }

    fn answer_by(&self) -> u64 {
        self.asked.boot_ms.saturating_add(ANSWER_WAIT_MS)
    }
}

/// What a use is, before it has its type.
struct Use {
    grant: GrantId,
    root: GrantId,
    path: RelativePath,
    until_boot_ms: u64,
    bytes_max: u64,
    snapshot: bool,
}

/// A capability that was given back.
#[derive(Debug)]
pub struct Spent {
    grant: GrantId,
    bytes_max: u64,
}

impl From<FileRead> for Spent {
    fn from(FileRead { grant, bytes_max, .. }: FileRead) -> Self {
        Self { grant, bytes_max }
    }
}

impl From<FileWrite> for Spent {
    fn from(FileWrite { grant, bytes_max, .. }: FileWrite) -> Self {
        Self { grant, bytes_max }
    }
}

fn within(name: &'static str, wanted: Option<u64>, most: u64) -> Result<u64, NarrowRefusal> {
    let wanted = wanted.unwrap_or(most);
    if (1..=most).contains(&wanted) { Ok(wanted) } else { Err(NarrowRefusal::Wider(name)) }
}
