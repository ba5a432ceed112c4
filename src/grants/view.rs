//! Grants as they are shown: to their holder, and to the operator who decides.

use ringfence_grants::{Audience, Grant, Kind, Shown, ShownKind, State, visible};
use serde::Serialize;
use utoipa::ToSchema;

/// All that somebody may see.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GrantsView {
    /// Names this run of the server; grants end with it.
    pub(crate) run: String,
    /// Counts every change; `GET /grants?after=VERSION` waits for the next.
    pub(crate) version: u64,
    /// Pending and live ones, then those that ended not long ago.
    pub(crate) grants: Vec<GrantView>,
}

/// One grant.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GrantView {
    /// Its number in this run of the server.
    grant: u64,
    /// Who asks.
    client: String,
    /// The uid of the process that asked, where the kernel states one.
    uid: Option<u32>,
    /// `pending`, `live`, `expired`, `revoked` or `denied`.
    state: &'static str,
    /// `file_read`, `file_write` or `audio_capture`.
    kind: &'static str,
    /// The granted file or folder, or the source of sound.
    path: String,
    /// The same with everything written out that would hide or reorder characters: for people.
    shown_path: String,
    /// Where the bytes go: `model NAME`, or `client`.
    audience: String,
    /// Why, in the client's words.
    reason: String,
    /// Where results go, in the client's words.
    results: String,
    /// Whether copies may be handed over, which can't be called back.
    snapshot: bool,
    /// How often it may be used; any number of times where it is absent.
    uses_max: Option<u32>,
    /// How often it was.
    uses: u64,
    /// Bytes that may be moved in all; 0 for sound, whose bound is the time.
    bytes_max: u64,
    /// Bytes that were moved, or are being moved.
    bytes: u64,
    /// How long it lives once it is approved, in milliseconds.
    lifetime_ms: u64,
    /// When it was asked for, in milliseconds since 1970.
    asked_ms: u64,
    /// Its end, in milliseconds since 1970.
    until_ms: Option<u64>,
    /// What the path is, from the opened object itself: this is what is granted. A source of sound is opened by no question.
    object: Option<ObjectView>,
    /// The grant whose root it is below, if it was narrowed from another.
    narrowed_from_root: Option<u64>,
}

/// An opened file or folder.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ObjectView {
    /// `file` or `folder`.
    kind: &'static str,
    /// Device number of its file system.
    device: u64,
    /// Its number there.
    inode: u64,
    /// Its owner's uid.
    owner: u32,
    /// Bytes of a file.
    size: u64,
    /// Its last change, in milliseconds since 1970.
    modified_ms: u64,
}

impl ObjectView {
    fn of(shown: &Shown) -> Option<Self> {
        let kind = match shown.kind {
            ShownKind::File => "file",
            ShownKind::Folder => "folder",
            ShownKind::Source => return None,
        };
        let Shown { device, inode, owner, size, modified_ms, .. } = *shown;
        Some(Self { kind, device, inode, owner, size, modified_ms })
    }
}

impl GrantView {
    pub(super) fn of(grant: &Grant) -> Self {
        let ask = &grant.ask;
        let path =
            if grant.path.is_root() { ask.path.clone() } else { format!("{}/{}", ask.path, grant.path) };
        let object = grant.shown.as_ref().and_then(ObjectView::of);
        Self {
            grant: grant.id.0,
            client: ask.client.clone(),
            uid: ask.uid,
            state: state_name(grant.state),
            kind: kind_name(ask.kind),
            shown_path: visible(&path),
            path,
            audience: audience_name(&ask.audience),
            reason: ask.reason.clone(),
            results: ask.results.clone(),
            snapshot: ask.snapshot,
            uses_max: ask.uses_max,
            uses: grant.uses,
            bytes_max: ask.bytes_max,
            bytes: grant.bytes,
            lifetime_ms: ask.lifetime_ms,
            asked_ms: grant.asked.wall_ms,
            until_ms: grant.until.map(|until| until.wall_ms),
            object,
            narrowed_from_root: (grant.root != grant.id).then_some(grant.root.0),
        }
    }

    /// Whether nobody has answered yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.state == state_name(State::Pending)
    }
}

pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::FileRead => "file_read",
        Kind::FileWrite => "file_write",
        Kind::AudioCapture => "audio_capture",
    }
}

pub(super) fn audience_name(audience: &Audience) -> String {
    match audience {
        Audience::Model(model) => format!("model {model}"),
        Audience::Client => "client".to_owned(),
    }
}

/// As it stands in answers and metrics.
pub(super) fn state_name(state: State) -> &'static str {
    match state {
        State::Pending => "pending",
        State::Live => "live",
        State::Expired => "expired",
        State::Revoked => "revoked",
        State::Denied => "denied",
    }
}
