//! Grants: clients ask, hold, narrow and give back; the operator decides on `admin.sock`.

use super::App;
use super::body::{JsonBody, NoBody};
use super::error::ApiError;
use super::identity::{Caller, PeerUid, Viewer};
use super::query::{query, wait};
use crate::audit::Who;
use crate::grants::{Asking, GrantView, GrantsView, Holder, unknown};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringfence_grants::{Approver, Ask, Audience, Decision, GrantId, Kind, Narrower, RelativePath};
use ringfence_protocol::{EntryKind, LIST_ENTRIES_MAX};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// The longest signature in base64.
const SIGNATURE_CHARS_MAX: usize = 256;

/// Body of `POST /grants`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AskBody {
    /// `file_read`, `file_write` or `audio_capture`.
    #[schema(value_type = String)]
    kind: Kind,
    /// The absolute path of a file or folder, without symbolic links; of sound `pulse`, `pulse:SOURCE`, `alsa`, `alsa:DEVICE` or
    /// `pushed`.
    path: String,
    /// The model whose workers get the bytes, as input of this client's jobs; without it the client itself. Sound is always
    /// for a model.
    #[serde(default)]
    model: Option<String>,
    /// Why: one line of at most 300 bytes.
    reason: String,
    /// Where results go: one line of at most 300 bytes.
    results: String,
    /// From the approval on, in milliseconds: at most a day, of sound a quarter of an hour.
    lifetime_ms: u64,
    /// How often it may be used; without it any number of times.
    #[serde(default)]
    uses_max: Option<u32>,
    /// Bytes in all, of a file or folder; sound has none.
    #[serde(default)]
    bytes_max: u64,
    /// Whether copies may be handed over, which can't be called back.
    #[serde(default)]
    snapshot: bool,
}

/// `POST /grants`: asks for one. What the path names is opened and held from now on; then somebody decides.
#[utoipa::path(post, path = "/grants", request_body = AskBody,
    responses((status = 201, body = GrantView, description = "a rule allows it"),
              (status = 202, body = GrantView, description = "it waits for an answer, for a minute"),
              (status = "4XX", body = super::error::ErrorBody), (status = "5XX", body = super::error::ErrorBody)))]
pub(super) async fn ask(
    State(app): State<Arc<App>>,
    caller: Caller,
    JsonBody { value, .. }: JsonBody<AskBody>,
) -> Result<(StatusCode, Json<GrantView>), ApiError> {
    let AskBody { kind, path, model, reason, results, lifetime_ms, uses_max, bytes_max, snapshot } = value;
    let model_known = model.as_ref().is_some_and(|model| app.dispatcher.knows_model(model));
    let audience = model.map_or(Audience::Client, Audience::Model);
    let Caller { client, who } = caller;
    let ask = Ask {
        client,
        uid: who.uid,
        kind,
        path,
        audience,
        reason,
        results,
        lifetime_ms,
        uses_max,
        bytes_max,
        snapshot,
    };
    let view = app.grants.ask(Asking { ask, who, model_known }).await?;
    let status = if view.is_pending() { StatusCode::ACCEPTED } else { StatusCode::CREATED };
    Ok((status, Json(view)))
}

/// `GET /grants?after=VERSION&wait_ms=N`: one's own, the operator's all; at once, or as soon as something has changed.
#[utoipa::path(get, path = "/grants",
    params(("after" = Option<u64>, Query, description = "the version that is known"),
           ("wait_ms" = Option<u64>, Query, description = "how long to wait for another: 0 to 60000")),
    responses((status = 200, body = GrantsView), (status = 400, body = super::error::ErrorBody)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Viewer(viewer): Viewer,
    uri: Uri,
) -> Result<Json<GrantsView>, ApiError> {
    let [after, wait_ms] = query(&uri, ["after", "wait_ms"])?;
    Ok(Json(app.grants.list(viewer.as_deref(), after, wait(wait_ms)?).await))
}

/// `GET /grants/{grant}?wait_ms=N`: one of them, at once or as soon as it is answered.
#[utoipa::path(get, path = "/grants/{grant}", params(("grant" = u64, Path),
           ("wait_ms" = Option<u64>, Query, description = "how long to wait for the answer: 0 to 60000")),
    responses((status = 200, body = GrantView), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Viewer(viewer): Viewer,
    Path(grant): Path<String>,
    uri: Uri,
) -> Result<Json<GrantView>, ApiError> {
    let [wait_ms] = query(&uri, ["wait_ms"])?;
    let view = app.grants.answered(number(&grant)?, viewer.as_deref(), wait(wait_ms)?).await;
    view.map(Json).ok_or_else(unknown)
}

/// `DELETE /grants/{grant}`: takes it back, with all that was narrowed from it. After the answer no byte is read on it.
#[utoipa::path(delete, path = "/grants/{grant}", params(("grant" = u64, Path)),
    responses((status = 200, body = GrantView), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Viewer(viewer): Viewer,
    who: Who,
    Path(grant): Path<String>,
) -> Result<Json<GrantView>, ApiError> {
    app.grants.revoke(number(&grant)?, viewer.as_deref(), who).await.map(Json)
}

/// Answer of `POST /grants/{grant}/claim` and of `POST /grants/narrow`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Claimed {
    /// The grant.
    grant: GrantView,
    /// What its holder presents at each use. It is not shown again.
    capability: String,
}

/// `POST /grants/{grant}/claim`: the capability string of a live grant, for its holder and once.
#[utoipa::path(post, path = "/grants/{grant}/claim", params(("grant" = u64, Path)),
    responses((status = 200, body = Claimed), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn claim(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(grant): Path<String>,
    NoBody: NoBody,
) -> Result<Json<Claimed>, ApiError> {
    let id = number(&grant)?;
    let capability = app.grants.claim(id, &caller.client)?;
    let grant = app.grants.view(id, Some(&caller.client)).ok_or_else(unknown)?;
    Ok(Json(Claimed { grant, capability }))
}

/// Body of `POST /grants/narrow`. What is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NarrowBody {
    /// Of the grant that there is to be less of.
    capability: String,
    /// The model that it is for, if it is for one.
    #[serde(default)]
    model: Option<String>,
    /// Below the grant's own path.
    #[serde(default)]
    path: String,
    /// From now on, in milliseconds.
    #[serde(default)]
    lifetime_ms: Option<u64>,
    /// How often; its uses count for the other too.
    #[serde(default)]
    uses_max: Option<u32>,
    /// Bytes in all; they count for the other too.
    #[serde(default)]
    bytes_max: Option<u64>,
    /// No copies, even where the other allows them.
    #[serde(default)]
    no_snapshot: bool,
}

/// `POST /grants/narrow`: a grant of less, to be handed on to a part of the client that needs no more.
#[utoipa::path(post, path = "/grants/narrow", request_body = NarrowBody,
    responses((status = 201, body = Claimed), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn narrow(
    State(app): State<Arc<App>>,
    caller: Caller,
    JsonBody { value, .. }: JsonBody<NarrowBody>,
) -> Result<(StatusCode, Json<Claimed>), ApiError> {
    let NarrowBody { capability, model, path, lifetime_ms, uses_max, bytes_max, no_snapshot } = value;
    let path = RelativePath::new(&path)
        .map_err(|error| ApiError::invalid("grant_path_refused", "path", error.to_string()))?;
    let holder = Holder::new(&caller.who, &caller.client, &capability, model);
    let narrower = Narrower { path, lifetime_ms, uses_max, bytes_max, no_snapshot };
    let (grant, capability) = app.grants.narrow(&holder, &narrower).await?;
    Ok((StatusCode::CREATED, Json(Claimed { grant, capability })))
}

/// Body of `POST /grants/entries`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EntriesBody {
    /// Of a grant to read.
    capability: String,
    /// The model that it is for, if it is for one.
    #[serde(default)]
    model: Option<String>,
    /// A folder below the grant's own path; empty for that itself.
    #[serde(default)]
    path: String,
    /// Names that sort after this one.
    #[serde(default)]
    after: String,
}

/// Answer of `POST /grants/entries`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Entries {
    /// Sorted by the bytes of their names, at most 200.
    entries: Vec<Entry>,
    /// Whether more come after these.
    more: bool,
    /// Entries whose names are no UTF-8, which can't be named.
    unnamed: u32,
}

/// An entry of a folder.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Entry {
    /// Its name.
    name: String,
    /// `file`, `folder` or `other`; links are not followed.
    kind: &'static str,
    /// Bytes of a file.
    size: u64,
    /// Last change of its contents, in milliseconds since 1970.
    modified_ms: i64,
}

/// `POST /grants/entries`: a page of a granted folder.
#[utoipa::path(post, path = "/grants/entries", request_body = EntriesBody,
    responses((status = 200, body = Entries), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn entries(
    State(app): State<Arc<App>>,
    caller: Caller,
    JsonBody { value, .. }: JsonBody<EntriesBody>,
) -> Result<Json<Entries>, ApiError> {
    let EntriesBody { capability, model, path, after } = value;
    let holder = Holder::new(&caller.who, &caller.client, &capability, model);
    let page = app.grants.entries(&holder, &path, after, LIST_ENTRIES_MAX).await?;
    let entry = |entry: ringfence_protocol::FileEntry| Entry {
        name: entry.name,
        kind: match entry.kind {
            EntryKind::File => "file",
            EntryKind::Folder => "folder",
            EntryKind::Other => "other",
        },
        size: entry.size,
        modified_ms: entry.modified_ms,
    };
    let entries = page.entries.into_iter().map(entry).collect();
    Ok(Json(Entries { entries, more: page.more, unnamed: page.unnamed }))
}

/// Body of `POST /grants/{grant}/approve`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ApproveBody {
    /// Less than was asked for, in milliseconds.
    #[serde(default)]
    lifetime_ms: Option<u64>,
    /// Where the approver has the asker's uid: base64 of the operator's ed25519 signature over the grant's
    /// `approval_text`.
    #[serde(default)]
    signature: Option<String>,
}

/// `POST /grants/{grant}/approve`
#[utoipa::path(post, path = "/grants/{grant}/approve", params(("grant" = u64, Path)), request_body = ApproveBody,
    responses((status = 200, body = GrantView), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn approve(
    State(app): State<Arc<App>>,
    PeerUid(uid): PeerUid,
    who: Who,
    Path(grant): Path<String>,
    JsonBody { value, .. }: JsonBody<ApproveBody>,
) -> Result<Json<GrantView>, ApiError> {
    let ApproveBody { lifetime_ms, signature } = value;
    let id = number(&grant)?;
    let operator = match signature {
        None => false,
        Some(signature) => proven(&app, id, lifetime_ms, &signature)?,
    };
    app.dispatcher.record_trust().await?;
    let decision = Decision::Approve { lifetime_ms };
    app.grants.decide(id, decision, Approver { uid, operator }, who).await.map(Json)
}

/// Whether the operator's key has signed this approval; a signature that does not hold is an error, not a lesser proof.
fn proven(app: &App, id: GrantId, lifetime_ms: Option<u64>, signature: &str) -> Result<bool, ApiError> {
    let wrong = |why: &str| ApiError::new(StatusCode::FORBIDDEN, "operator_proof_wrong", why.to_owned());
    if signature.len() > SIGNATURE_CHARS_MAX {
        return Err(wrong("the signature is too long"));
    }
    let signature = STANDARD.decode(signature).map_err(|_| wrong("the signature is not base64"))?;
    // One that is not there, or not opened yet, is refused by its state.
    let Some(text) = app.grants.approval_text(id, lifetime_ms) else { return Ok(false) };
    match app.dispatcher.is_signed_by_operator(text.as_bytes(), &signature) {
        Ok(true) => Ok(true),
        Ok(false) => Err(wrong("no key of the operator's has signed this approval")),
        Err(error) => Err(ApiError::internal(&error)),
    }
}

/// `POST /grants/{grant}/deny`
#[utoipa::path(post, path = "/grants/{grant}/deny", params(("grant" = u64, Path)),
    responses((status = 200, body = GrantView), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn deny(
    State(app): State<Arc<App>>,
    PeerUid(uid): PeerUid,
    who: Who,
    Path(grant): Path<String>,
    NoBody: NoBody,
) -> Result<Json<GrantView>, ApiError> {
    let by = Approver { uid, operator: false };
    app.grants.decide(number(&grant)?, Decision::Deny, by, who).await.map(Json)
}

fn number(grant: &str) -> Result<GrantId, ApiError> {
    grant.parse().map(GrantId).map_err(|_| unknown())
}
