//! The operator's routes, served on `admin.sock` only.

use super::App;
use super::body::{JsonBody, NoBody};
use super::error::ApiError;
use crate::audit::{AuditError, Who};
use crate::clients::{self, Client, ClientName, ClientsError};
use crate::clock;
use crate::dispatch::ModelView;
use crate::keys::{KeyRecord, KeysError, Scope};
use crate::status::{self, Status, WorkerView};
use crate::workers::Line;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use ringfence_audit::Change;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// `GET /status`
#[utoipa::path(get, path = "/status", responses((status = 200, body = Status)))]
pub(super) async fn status(State(app): State<Arc<App>>) -> Json<Status> {
    Json(status::status(&app))
}

/// Answer of `GET /workers`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Workers {
    /// All that were started and have not ended.
    workers: Vec<WorkerView>,
}

/// `GET /workers`
#[utoipa::path(get, path = "/workers", responses((status = 200, body = Workers)))]
pub(super) async fn workers(State(app): State<Arc<App>>) -> Json<Workers> {
    Json(Workers { workers: status::workers(&app) })
}

/// Body of `POST /workers/{worker}/drill`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Drill {
    /// Memory that the worker takes past its allocator and keeps, in MiB: from 1 to 1048576.
    take_mib: u32,
    /// Whether the kernel gives it nothing more from now on.
    #[serde(default)]
    starve: bool,
}

/// The most that a drill takes, in MiB.
const DRILL_MIB_MAX: u32 = 1 << 20;

/// `POST /workers/{worker}/drill`: lets a worker do what one does that somebody has taken over, so that it can be seen
/// what stops it. It costs the jobs in it a replay.
#[utoipa::path(post, path = "/workers/{worker}/drill", params(("worker" = u64, Path)), request_body = Drill,
    responses((status = 202, body = Workers), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn drill_worker(
    State(app): State<Arc<App>>,
    Path(worker): Path<String>,
    JsonBody { value: Drill { starve, take_mib }, .. }: JsonBody<Drill>,
) -> Result<(StatusCode, Json<Workers>), ApiError> {
    if !(1..=DRILL_MIB_MAX).contains(&take_mib) {
        let message = format!("take_mib is {take_mib}; it must be from 1 to {DRILL_MIB_MAX}");
        return Err(ApiError::invalid("drill_invalid", "take_mib", message));
    }
    app.dispatcher.drill(&worker, starve, u64::from(take_mib) << 20)?;
    Ok((StatusCode::ACCEPTED, Json(Workers { workers: status::workers(&app) })))
}

/// Answer of the routes about models.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Models {
    /// All packages in the home, verified or not.
    models: Vec<ModelView>,
}

/// `GET /models`
#[utoipa::path(get, path = "/models", responses((status = 200, body = Models)))]
pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Models> {
    Json(Models { models: app.dispatcher.models() })
}

/// `POST /models/reload`: reads packages and the trust file again.
#[utoipa::path(post, path = "/models/reload", responses((status = 200, body = Models)))]
pub(super) async fn reload_models(
    State(app): State<Arc<App>>,
    NoBody: NoBody,
) -> Result<Json<Models>, ApiError> {
    app.dispatcher
        .reload_models()
        .await
        .map_err(|error| ApiError::new(StatusCode::CONFLICT, error.code(), error.to_string()))?;
    Ok(Json(Models { models: app.dispatcher.models() }))
}

/// `POST /models/{model}/load`: starts a worker now instead of at the first job.
#[utoipa::path(post, path = "/models/{model}/load", params(("model" = String, Path)),
    responses((status = 200, body = Models), (status = 404, body = super::error::ErrorBody)))]
pub(super) async fn load_model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    NoBody: NoBody,
) -> Result<Json<Models>, ApiError> {
    app.audit.well()?;
    app.dispatcher.load(&name)?;
    Ok(Json(Models { models: app.dispatcher.models() }))
}

/// `POST /models/{model}/unload`: ends its idle workers.
#[utoipa::path(post, path = "/models/{model}/unload", params(("model" = String, Path)),
    responses((status = 200, body = Models), (status = 404, body = super::error::ErrorBody)))]
pub(super) async fn unload_model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    NoBody: NoBody,
) -> Result<Json<Models>, ApiError> {
    app.dispatcher.unload(&name)?;
    Ok(Json(Models { models: app.dispatcher.models() }))
}

/// Answer of `GET /models/{model}/logs`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelLines {
    /// The oldest first; at most the last 500.
    lines: Vec<Line>,
}

/// `GET /models/{model}/logs?after=NUMBER`: what happened to its workers, and what they wrote.
#[utoipa::path(get, path = "/models/{model}/logs", params(("model" = String, Path),
           ("after" = Option<u64>, Query, description = "the number of the last line that is known")),
    responses((status = 200, body = ModelLines), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn model_logs(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<ModelLines>, ApiError> {
    let [after] = super::query::query(&uri, ["after"])?;
    let lines = app.dispatcher.log_lines(&name, after.unwrap_or(0));
    lines.map(|lines| Json(ModelLines { lines })).ok_or_else(|| ApiError::model_unknown(&name))
}

/// `POST /models/{model}/drill`: lets the next worker of the model find next to no memory for its package, once.
#[utoipa::path(post, path = "/models/{model}/drill", params(("model" = String, Path)),
    responses((status = 202, body = Models), (status = 404, body = super::error::ErrorBody)))]
pub(super) async fn drill_model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<Models>), ApiError> {
    app.dispatcher.drill_load(&name)?;
    Ok((StatusCode::ACCEPTED, Json(Models { models: app.dispatcher.models() })))
}

/// A client with a socket.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ClientView {
    /// Its name.
    name: String,
    /// Where it connects.
    socket: String,
    /// The uid that may, beside the server's own and root.
    uid: Option<u32>,
}

/// Answer of `GET /clients`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Clients {
    /// By name.
    clients: Vec<ClientView>,
}

/// `GET /clients`
#[utoipa::path(get, path = "/clients", responses((status = 200, body = Clients)))]
pub(super) async fn clients(State(app): State<Arc<App>>) -> Json<Clients> {
    let clients = app.clients();
    Json(Clients { clients: clients.iter().map(|client| view(&app, client)).collect() })
}

/// Body of `POST /clients`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewClient {
    /// Its name.
    name: String,
    /// The uid that may reach the socket.
    #[serde(default)]
    uid: Option<u32>,
}

/// `POST /clients`
#[utoipa::path(post, path = "/clients", request_body = NewClient,
    responses((status = 201, body = ClientView), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn add_client(
    State(app): State<Arc<App>>,
    who: Who,
    JsonBody { value, .. }: JsonBody<NewClient>,
) -> Result<(StatusCode, Json<ClientView>), ApiError> {
    let name = client_name(&value.name, "name")?;
    let client = Client { name, uid: value.uid };
    let added = to_its_end(async move { add(&app, &client, &who).await }).await?;
    Ok((StatusCode::CREATED, Json(added)))
}

/// Runs a change to its end, also where the operator does not wait for the answer: what is in the log is done.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::spawn(change).await.map_err(|error| ApiError::internal(&error))?
}

async fn add(app: &App, client: &Client, who: &Who) -> Result<ClientView, ApiError> {
    let _changing = app.listeners.changing.lock().await;
    let name = client.name.as_str();
    if app.clients().iter().any(|other| other.name == client.name) {
        return Err(refused_client(&ClientsError::Exists { name: name.to_owned() }));
    }
    app.audit.client_changed(who, name, Change::Added).await?;
    let added = make(app, client).await;
    if added.is_err() {
        app.audit.client_changed(who, name, Change::Removed).await?;
    }
    added?;
    tracing::info!(client = %client.name, uid = client.uid, "client added");
    Ok(view(app, client))
}

async fn make(app: &App, client: &Client) -> Result<(), ApiError> {
    {
        let mut clients = app.clients();
        clients::add(&app.home, clients.len(), client).map_err(|error| refused_client(&error))?;
        clients.push(client.clone());
    }
    app.listeners.bind_client(&app.home, client).await.map_err(|error| ApiError::internal(&error))
}

/// Answer of `DELETE /clients/{name}`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RemovedClient {
    /// Who it was.
    name: String,
    /// Keys of it that were valid until now.
    keys_revoked: usize,
    /// Grants that it had or had asked for.
    grants_ended: usize,
}

/// `DELETE /clients/{name}`: its keys and grants are revoked, its jobs cancelled, its connections closed, its socket and its
/// folder are gone with the answer. What is cut off in between is finished by asking again. Its section of `quotas.toml`
/// stays.
#[utoipa::path(delete, path = "/clients/{name}", params(("name" = String, Path)),
    responses((status = 200, body = RemovedClient), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn remove_client(
    State(app): State<Arc<App>>,
    who: Who,
    Path(name): Path<String>,
) -> Result<Json<RemovedClient>, ApiError> {
    if clients::is_built_in(&name) {
        let message = format!("client {name:?} is built in; nobody has added it, and nobody can remove it");
        return Err(ApiError::new(StatusCode::CONFLICT, "client_built_in", message));
    }
    let name = client_name(&name, "name")?;
    to_its_end(async move { remove(&app, &name, &who).await }).await.map(Json)
}

/// In this order: a removal that is cut off leaves a client with less, which can be removed again.
async fn remove(app: &App, name: &ClientName, who: &Who) -> Result<RemovedClient, ApiError> {
    let _changing = app.listeners.changing.lock().await;
    if !app.clients().iter().any(|client| client.name == *name) {
        return Err(refused_client(&ClientsError::Missing { name: name.to_string() }));
    }
    // What takes something away is done even where it can't be written down.
    written(app.audit.client_changed(who, name.as_str(), Change::Removed).await);
    let own_keys: Vec<String> = {
        let keys = app.keys.lock().expect("no thread panics with this lock");
        let valid = |key: &&KeyRecord| key.client == *name && key.revoked_at.is_none();
        keys.all().iter().filter(valid).map(|key| key.id.clone()).collect()
    };
    for id in own_keys {
        written(app.audit.key_changed(who, &id, Change::Removed).await);
    }
    let keys_revoked = {
        let mut keys = app.keys.lock().expect("no thread panics with this lock");
        keys.revoke_all_of(&app.home, name, clock::unix_seconds()).map_err(|error| refused_key(&error))?
    };
    app.listeners.remove_client(name).await.map_err(|error| ApiError::internal(&error))?;
    // Its requests were dropped, and their jobs are cancelled with them.
    app.dispatcher.client_removed(name.as_str())?;
    let grants_ended = app.grants.remove_client(name.as_str(), who).await;
    clients::remove(&app.home, name).map_err(|error| refused_client(&error))?;
    app.clients().retain(|client| client.name != *name);
    tracing::info!(client = %name, keys_revoked, grants_ended, "client removed");
    Ok(RemovedClient { name: name.to_string(), keys_revoked, grants_ended })
}

/// What the log says to a change that is made in any case.
fn written(recorded: Result<(), AuditError>) {
    if let Err(error) = recorded {
        tracing::error!(%error, "a change that takes something away is made, and is not in the audit log");
    }
}

fn refused_client(error: &ClientsError) -> ApiError {
    match error {
        ClientsError::Exists { .. } => {
            ApiError::new(StatusCode::CONFLICT, "client_exists", error.to_string())
        }
        ClientsError::Missing { .. } => {
            ApiError::new(StatusCode::NOT_FOUND, "client_unknown", error.to_string())
        }
        ClientsError::Full => ApiError::new(StatusCode::CONFLICT, "clients_full", error.to_string()),
        ClientsError::Home(_) | ClientsError::Access { .. } | ClientsError::Malformed { .. } => {
            ApiError::internal(error)
        }
    }
}

fn client_name(name: &str, param: &str) -> Result<ClientName, ApiError> {
    ClientName::new(name).map_err(|error| ApiError::invalid("client_name_invalid", param, error.to_string()))
}

fn view(app: &App, client: &Client) -> ClientView {
    let socket = clients::socket_path(&app.home, &client.name).display().to_string();
    ClientView { name: client.name.to_string(), socket, uid: client.uid }
}

/// A key without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeyView {
    /// Names the key in `key revoke`.
    id: String,
    /// Whom it stands for.
    client: String,
    /// What it opens.
    scope: Scope,
    /// Unix seconds.
    created_at: u64,
    /// Unix seconds; absent for a key that stays valid until it is revoked.
    expires_at: Option<u64>,
    /// Whether it was revoked.
    revoked: bool,
}

/// Answer of `GET /keys`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeyList {
    /// In order of making.
    keys: Vec<KeyView>,
}

/// Answer of `POST /keys`: the only time that the key is shown.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MadeKey {
    /// What the client sends as `Authorization: Bearer KEY`.
    key: String,
    /// The rest.
    #[serde(flatten)]
    record: KeyView,
}

impl From<&KeyRecord> for KeyView {
    fn from(record: &KeyRecord) -> Self {
        Self {
            id: record.id.clone(),
            client: record.client.to_string(),
            scope: record.scope,
            created_at: record.created_at,
            expires_at: record.expires_at,
            revoked: record.revoked_at.is_some(),
        }
    }
}

/// `GET /keys`
#[utoipa::path(get, path = "/keys", responses((status = 200, body = KeyList)))]
pub(super) async fn keys(State(app): State<Arc<App>>) -> Json<KeyList> {
    let keys = app.keys.lock().expect("no thread panics with this lock");
    Json(KeyList { keys: keys.all().iter().map(KeyView::from).collect() })
}

/// Body of `POST /keys`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    /// Whom it stands for.
    client: String,
    /// What it opens. Default: `infer`.
    #[serde(default = "infer")]
    scope: Scope,
    /// Seconds until it expires; without it, never.
    #[serde(default)]
    expires_in_s: Option<u64>,
}

fn infer() -> Scope {
    Scope::Infer
}

/// `POST /keys`
#[utoipa::path(post, path = "/keys", request_body = NewKey,
    responses((status = 201, body = MadeKey), (status = "4XX", body = super::error::ErrorBody)))]
pub(super) async fn add_key(
    State(app): State<Arc<App>>,
    who: Who,
    JsonBody { value, .. }: JsonBody<NewKey>,
) -> Result<(StatusCode, Json<MadeKey>), ApiError> {
    let client = client_name(&value.client, "client")?;
    if value.expires_in_s == Some(0) {
        return Err(ApiError::invalid("expiry_invalid", "expires_in_s", "expires_in_s is at least 1"));
    }
    let NewKey { scope, expires_in_s, .. } = value;
    let made = to_its_end(async move { make_key(&app, client, scope, expires_in_s, &who).await }).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// A key that nobody was shown has no effect, so it is made first: then it has a name for the log.
async fn make_key(
    app: &App,
    client: ClientName,
    scope: Scope,
    expires_in_s: Option<u64>,
    who: &Who,
) -> Result<MadeKey, ApiError> {
    app.audit.well()?;
    let made = {
        let mut keys = app.keys.lock().expect("no thread panics with this lock");
        keys.add(&app.home, client, scope, clock::unix_seconds(), expires_in_s)
    };
    let (key, record) = made.map_err(|error| refused_key(&error))?;
    if let Err(error) = app.audit.key_changed(who, &record.id, Change::Added).await {
        let mut keys = app.keys.lock().expect("no thread panics with this lock");
        let revoked = keys.revoke(&app.home, &record.id, clock::unix_seconds());
        revoked.map_err(|error| refused_key(&error))?;
        return Err(error.into());
    }
    tracing::info!(client = %record.client, key = record.id, "key added");
    Ok(MadeKey { key, record: KeyView::from(&record) })
}

/// `DELETE /keys/{id}`
#[utoipa::path(delete, path = "/keys/{id}", params(("id" = String, Path)),
    responses((status = 200, body = KeyView), (status = 404, body = super::error::ErrorBody)))]
pub(super) async fn revoke_key(
    State(app): State<Arc<App>>,
    who: Who,
    Path(id): Path<String>,
) -> Result<Json<KeyView>, ApiError> {
    to_its_end(async move { revoke(&app, &id, &who).await }).await.map(Json)
}

async fn revoke(app: &App, id: &str, who: &Who) -> Result<KeyView, ApiError> {
    let valid = {
        let keys = app.keys.lock().expect("no thread panics with this lock");
        keys.all().iter().any(|key| key.id == id && key.revoked_at.is_none())
    };
    if valid {
        written(app.audit.key_changed(who, id, Change::Removed).await);
    }
    let mut keys = app.keys.lock().expect("no thread panics with this lock");
    let record = keys.revoke(&app.home, id, clock::unix_seconds()).map_err(|error| refused_key(&error))?;
    tracing::info!(client = %record.client, key = record.id, "key revoked");
    Ok(KeyView::from(&record))
}

fn refused_key(error: &KeysError) -> ApiError {
    match error {
        KeysError::Missing { .. } => ApiError::new(StatusCode::NOT_FOUND, "key_unknown", error.to_string()),
        KeysError::Full => ApiError::new(StatusCode::CONFLICT, "keys_full", error.to_string()),
        KeysError::Home(_) | KeysError::Malformed(_) | KeysError::Random(_) => ApiError::internal(error),
    }
}

/// `GET /metrics`: Prometheus text.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String)))]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> ([(&'static str, &'static str); 1], String) {
    status::gauges(&app);
    app.metrics.run_upkeep();
    ([("content-type", "text/plain; version=0.0.4")], app.metrics.render())
}
