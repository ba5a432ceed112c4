//! HTTP: the table of routes, and what stands before every one of them.

mod admin;
mod alerts;
mod answered;
mod audio;
mod body;
mod captures;
mod chat;
mod completion_events;
mod completions;
mod error;
mod files;
mod generate;
mod grants;
mod health;
mod identity;
mod jobs;
mod listen;
mod oip;
mod openai;
mod openapi;
mod pieces;
mod query;
mod quotas;
mod timing;
mod trace;
mod transcript;
mod transcript_events;

pub(crate) use error::ApiError;
pub(crate) use health::{Health, Verdict};
pub(crate) use identity::Peer;
pub(crate) use listen::bind_tcp;
pub(crate) use listen::{ListenError, Listeners, NewListeners, serve};

use crate::audit::{Audit, Who};
use crate::capture::CaptureService;
use crate::clients::Client;
use crate::dispatch::Dispatcher;
use crate::grants::GrantService;
use crate::home::Home;
use crate::keys::Keys;
use crate::status::Facts;
use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use error::RefusedWith;
use identity::{Caller, RequestId, Surface};
use listen::Presence;
use metrics_exporter_prometheus::PrometheusHandle;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Everything that handlers reach.
pub(crate) struct App {
    /// The server's files.
    pub(crate) home: Arc<Home>,
    /// API keys.
    pub(crate) keys: Mutex<Keys>,
    /// Clients with a socket of their own.
    pub(crate) clients: Mutex<Vec<Client>>,
    /// Where jobs go.
    pub(crate) dispatcher: Arc<Dispatcher>,
    /// What has to be known later.
    pub(crate) audit: Audit,
    /// Who may have which files.
    pub(crate) grants: Arc<GrantService>,
    /// What is captured for whom.
    pub(crate) captures: Arc<CaptureService>,
    /// What does not change while the server runs.
    pub(crate) facts: Facts,
    /// The text of `/metrics`.
    pub(crate) metrics: PrometheusHandle,
    /// The next request's id; begins at a random number in each run.
    pub(crate) request_ids: AtomicU64,
    /// Tells the listeners of a new client.
    pub(crate) listeners: Listeners,
}

impl App {
    fn clients(&self) -> MutexGuard<'_, Vec<Client>> {
        self.clients.lock().expect("no thread panics with this lock")
    }
}

/// Every route there is. A new one has to name its method, path, surface and handler below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Health,
    OpenApi,
    Embeddings,
    EmbeddingsPrefixed,
    Chat,
    ChatPrefixed,
    Completions,
    CompletionsPrefixed,
    Transcriptions,
    TranscriptionsPrefixed,
    Translations,
    TranslationsPrefixed,
    OpenAiModels,
    OpenAiModelsPrefixed,
    OpenAiModel,
    OpenAiModelPrefixed,
    InferenceLive,
    InferenceReady,
    InferenceServer,
    InferenceModel,
    InferenceModelVersion,
    InferenceModelReady,
    InferenceModelVersionReady,
    Infer,
    InferVersion,
    RepositoryIndex,
    RepositoryLoad,
    RepositoryUnload,
    Job,
    Usage,
    GrantsList,
    GrantsAsk,
    Grant,
    GrantRevoke,
    GrantClaim,
    GrantNarrow,
    GrantEntries,
    GrantFileRead,
    GrantFileWrite,
    GrantApprove,
    GrantDeny,
    CapturesList,
    CaptureStart,
    CapturePause,
    CaptureResume,
    CaptureStop,
    CaptureRenew,
    CapturePush,
    Status,
    Workers,
    WorkerDrill,
    Models,
    ModelsReload,
    ModelLoad,
    ModelUnload,
    ModelDrill,
    ModelLogs,
    ClientsList,
    ClientsAdd,
    ClientsRemove,
    KeysList,
    KeysAdd,
    KeysRevoke,
    QuotasGet,
    QuotasPut,
    Trace,
    Alerts,
    Metrics,
}

impl Route {
    const ALL: [Self; 68] = [
        Self::Health,
        Self::OpenApi,
        Self::Embeddings,
        Self::EmbeddingsPrefixed,
        Self::Chat,
        Self::ChatPrefixed,
        Self::Completions,
        Self::CompletionsPrefixed,
        Self::Transcriptions,
        Self::TranscriptionsPrefixed,
        Self::Translations,
        Self::TranslationsPrefixed,
        Self::OpenAiModels,
        Self::OpenAiModelsPrefixed,
        Self::OpenAiModel,
        Self::OpenAiModelPrefixed,
        Self::InferenceLive,
        Self::InferenceReady,
        Self::InferenceServer,
        Self::InferenceModel,
        Self::InferenceModelVersion,
        Self::InferenceModelReady,
        Self::InferenceModelVersionReady,
        Self::Infer,
        Self::InferVersion,
        Self::RepositoryIndex,
        Self::RepositoryLoad,
        Self::RepositoryUnload,
        Self::Job,
        Self::Usage,
        Self::GrantsList,
        Self::GrantsAsk,
        Self::Grant,
        Self::GrantRevoke,
        Self::GrantClaim,
        Self::GrantNarrow,
        Self::GrantEntries,
        Self::GrantFileRead,
        Self::GrantFileWrite,
        Self::GrantApprove,
        Self::GrantDeny,
        Self::CapturesList,
        Self::CaptureStart,
        Self::CapturePause,
        Self::CaptureResume,
        Self::CaptureStop,
        Self::CaptureRenew,
        Self::CapturePush,
        Self::Status,
        Self::Workers,
        Self::WorkerDrill,
        Self::Models,
        Self::ModelsReload,
        Self::ModelLoad,
        Self::ModelUnload,
        Self::ModelDrill,
        Self::ModelLogs,
        Self::ClientsList,
        Self::ClientsAdd,
        Self::ClientsRemove,
        Self::KeysList,
        Self::KeysAdd,
        Self::KeysRevoke,
        Self::QuotasGet,
        Self::QuotasPut,
        Self::Trace,
        Self::Alerts,
        Self::Metrics,
    ];

    fn place(self) -> (Method, &'static str, Surface) {
        match self {
            Self::Health => (Method::GET, "/health", Surface::Open),
            Self::OpenApi => (Method::GET, "/openapi.json", Surface::Open),
            Self::Embeddings => (Method::POST, "/v1/embeddings", Surface::Public),
            Self::EmbeddingsPrefixed => (Method::POST, "/openai/v1/embeddings", Surface::Public),
            Self::Chat => (Method::POST, "/v1/chat/completions", Surface::Public),
            Self::ChatPrefixed => (Method::POST, "/openai/v1/chat/completions", Surface::Public),
            Self::Completions => (Method::POST, "/v1/completions", Surface::Public),
            Self::CompletionsPrefixed => (Method::POST, "/openai/v1/completions", Surface::Public),
            Self::Transcriptions => (Method::POST, "/v1/audio/transcriptions", Surface::Public),
            Self::TranscriptionsPrefixed => {
                (Method::POST, "/openai/v1/audio/transcriptions", Surface::Public)
            }
            Self::Translations => (Method::POST, "/v1/audio/translations", Surface::Public),
            Self::TranslationsPrefixed => (Method::POST, "/openai/v1/audio/translations", Surface::Public),
            Self::OpenAiModels => (Method::GET, "/v1/models", Surface::Public),
            Self::OpenAiModelsPrefixed => (Method::GET, "/openai/v1/models", Surface::Public),
            Self::OpenAiModel => (Method::GET, "/v1/models/{model}", Surface::Public),
            Self::OpenAiModelPrefixed => (Method::GET, "/openai/v1/models/{model}", Surface::Public),
            Self::InferenceLive => (Method::GET, "/v2/health/live", Surface::Open),
            Self::InferenceReady => (Method::GET, "/v2/health/ready", Surface::Open),
            Self::InferenceServer => (Method::GET, "/v2", Surface::Open),
            Self::InferenceModel => (Method::GET, "/v2/models/{model}", Surface::Own),
            Self::InferenceModelVersion => {
                (Method::GET, "/v2/models/{model}/versions/{version}", Surface::Own)
            }
            Self::InferenceModelReady => (Method::GET, "/v2/models/{model}/ready", Surface::Own),
            Self::InferenceModelVersionReady => {
                (Method::GET, "/v2/models/{model}/versions/{version}/ready", Surface::Own)
            }
            Self::Infer => (Method::POST, "/v2/models/{model}/infer", Surface::Public),
            Self::InferVersion => {
                (Method::POST, "/v2/models/{model}/versions/{version}/infer", Surface::Public)
            }
            Self::RepositoryIndex => (Method::POST, "/v2/repository/index", Surface::Own),
            Self::RepositoryLoad => (Method::POST, "/v2/repository/models/{model}/load", Surface::Admin),
            Self::RepositoryUnload => (Method::POST, "/v2/repository/models/{model}/unload", Surface::Admin),
            Self::Job => (Method::GET, "/jobs/{job}", Surface::Own),
            Self::Usage => (Method::GET, "/usage", Surface::Own),
            Self::GrantsList => (Method::GET, "/grants", Surface::Own),
            Self::GrantsAsk => (Method::POST, "/grants", Surface::Public),
            Self::Grant => (Method::GET, "/grants/{grant}", Surface::Own),
            Self::GrantRevoke => (Method::DELETE, "/grants/{grant}", Surface::Own),
            Self::GrantClaim => (Method::POST, "/grants/{grant}/claim", Surface::Public),
            Self::GrantNarrow => (Method::POST, "/grants/narrow", Surface::Public),
            Self::GrantEntries => (Method::POST, "/grants/entries", Surface::Public),
            Self::GrantFileRead => (Method::GET, "/grants/file", Surface::Public),
            Self::GrantFileWrite => (Method::PUT, "/grants/file", Surface::Public),
            Self::GrantApprove => (Method::POST, "/grants/{grant}/approve", Surface::Admin),
            Self::GrantDeny => (Method::POST, "/grants/{grant}/deny", Surface::Admin),
            Self::CapturesList => (Method::GET, "/audio/captures", Surface::Own),
            Self::CaptureStart => (Method::POST, "/audio/captures", Surface::Public),
            Self::CapturePause => (Method::POST, "/audio/captures/{capture}/pause", Surface::Own),
            Self::CaptureResume => (Method::POST, "/audio/captures/{capture}/resume", Surface::Own),
            Self::CaptureStop => (Method::POST, "/audio/captures/{capture}/stop", Surface::Own),
            Self::CaptureRenew => (Method::POST, "/audio/captures/{capture}/renew", Surface::Public),
            Self::CapturePush => (Method::GET, "/audio/captures/{capture}/push", Surface::Public),
            Self::Status => (Method::GET, "/status", Surface::Admin),
            Self::Workers => (Method::GET, "/workers", Surface::Admin),
            Self::WorkerDrill => (Method::POST, "/workers/{worker}/drill", Surface::Admin),
            Self::Models => (Method::GET, "/models", Surface::Admin),
            Self::ModelsReload => (Method::POST, "/models/reload", Surface::Admin),
            Self::ModelLoad => (Method::POST, "/models/{model}/load", Surface::Admin),
            Self::ModelUnload => (Method::POST, "/models/{model}/unload", Surface::Admin),
            Self::ModelDrill => (Method::POST, "/models/{model}/drill", Surface::Admin),
            Self::ModelLogs => (Method::GET, "/models/{model}/logs", Surface::Admin),
            Self::ClientsList => (Method::GET, "/clients", Surface::Admin),
            Self::ClientsAdd => (Method::POST, "/clients", Surface::Admin),
            Self::ClientsRemove => (Method::DELETE, "/clients/{name}", Surface::Admin),
            Self::KeysList => (Method::GET, "/keys", Surface::Admin),
            Self::KeysAdd => (Method::POST, "/keys", Surface::Admin),
            Self::KeysRevoke => (Method::DELETE, "/keys/{id}", Surface::Admin),
            Self::QuotasGet => (Method::GET, "/quotas", Surface::Admin),
            Self::QuotasPut => (Method::PUT, "/quotas", Surface::Admin),
            Self::Trace => (Method::GET, "/trace", Surface::Admin),
            Self::Alerts => (Method::GET, "/alerts", Surface::Admin),
            Self::Metrics => (Method::GET, "/metrics", Surface::Metrics),
        }
    }

    fn handler(self) -> MethodRouter<Arc<App>> {
        match self {
            Self::Health => get(health::health),
            Self::OpenApi => get(openapi::document),
            Self::Embeddings | Self::EmbeddingsPrefixed => post(openai::embeddings),
            Self::Chat | Self::ChatPrefixed => post(chat::chat),
            Self::Completions | Self::CompletionsPrefixed => post(completions::completions),
            Self::Transcriptions | Self::TranscriptionsPrefixed => {
                post(audio::transcriptions).layer(DefaultBodyLimit::max(audio::FORM_BYTES_MAX))
            }
            Self::Translations | Self::TranslationsPrefixed => {
                post(audio::translations).layer(DefaultBodyLimit::max(audio::FORM_BYTES_MAX))
            }
            Self::OpenAiModels | Self::OpenAiModelsPrefixed => get(openai::models),
            Self::OpenAiModel | Self::OpenAiModelPrefixed => get(openai::model),
            Self::InferenceLive => get(oip::live),
            Self::InferenceReady => get(oip::ready),
            Self::InferenceServer => get(oip::server),
            Self::InferenceModel => get(oip::model),
            Self::InferenceModelVersion => get(oip::model_version),
            Self::InferenceModelReady => get(oip::model_ready),
            Self::InferenceModelVersionReady => get(oip::model_version_ready),
            Self::Infer => post(oip::infer),
            Self::InferVersion => post(oip::infer_version),
            Self::RepositoryIndex => post(oip::repository::index),
            Self::RepositoryLoad => post(oip::repository::load),
            Self::RepositoryUnload => post(oip::repository::unload),
            Self::Job => get(jobs::job),
            Self::Usage => get(jobs::usage),
            Self::GrantsList => get(grants::list),
            Self::GrantsAsk => post(grants::ask),
            Self::Grant => get(grants::show),
            Self::GrantRevoke => delete(grants::revoke),
            Self::GrantClaim => post(grants::claim),
            Self::GrantNarrow => post(grants::narrow),
            Self::GrantEntries => post(grants::entries),
            Self::GrantFileRead => get(files::read),
            Self::GrantFileWrite => put(files::write),
            Self::GrantApprove => post(grants::approve),
            Self::GrantDeny => post(grants::deny),
            Self::CapturesList => get(captures::list),
            Self::CaptureStart => post(captures::start),
            Self::CapturePause => post(captures::pause),
            Self::CaptureResume => post(captures::resume),
            Self::CaptureStop => post(captures::stop),
            Self::CaptureRenew => post(captures::renew),
            Self::CapturePush => get(captures::push),
            Self::Status => get(admin::status),
            Self::Workers => get(admin::workers),
            Self::WorkerDrill => post(admin::drill_worker),
            Self::Models => get(admin::models),
            Self::ModelsReload => post(admin::reload_models),
            Self::ModelLoad => post(admin::load_model),
            Self::ModelUnload => post(admin::unload_model),
            Self::ModelDrill => post(admin::drill_model),
            Self::ModelLogs => get(admin::model_logs),
            Self::ClientsList => get(admin::clients),
            Self::ClientsAdd => post(admin::add_client),
            Self::ClientsRemove => delete(admin::remove_client),
            Self::KeysList => get(admin::keys),
            Self::KeysAdd => post(admin::add_key),
            Self::KeysRevoke => delete(admin::revoke_key),
            Self::QuotasGet => get(quotas::show),
            Self::QuotasPut => put(quotas::replace),
            Self::Trace => get(trace::record),
            Self::Alerts => get(alerts::alerts),
            Self::Metrics => get(admin::metrics),
        }
    }
}

/// The router over all routes; what a connection may have is decided per request.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let mut router = Router::new();
    for route in Route::ALL {
        router = router.route(route.place().1, route.handler());
    }
    router
        .method_not_allowed_fallback(|| async {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this route has other methods",
            )
        })
        .fallback(|| async {
            ApiError::new(StatusCode::NOT_FOUND, "not_found", "no such route; GET /openapi.json lists them")
        })
        .layer(middleware::from_fn_with_state(app.clone(), guard))
        .with_state(app.clone())
}

/// Stands before every handler: request id, Host and Origin, identity, and the log line.
async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = RequestId(format!("{:016x}", app.request_ids.fetch_add(1, Ordering::Relaxed)));
    let surface = surface_of(&request);
    let of_oip = oip::has(request.uri().path());
    let peer = request.extensions().get::<Peer>().expect("`listen` names every connection's peer").clone();
    let mut who = Who { uid: peer.uid(), request: Some(id.0.clone()), ..Who::default() };
    let admitted = identity::admit(&app, &peer, surface, request.headers(), request.uri().authority());
    let admitted = admitted.and_then(|client| Ok((client, identity::session(request.headers())?)));
    let response = match admitted {
        Err(error) => error.into_response(),
        Ok((client, session)) => {
            (who.client, who.session) = (client.clone(), session);
            request.extensions_mut().insert(who.clone());
            match client {
                None => next.run(request).await,
                Some(client) => {
                    let presence = app.listeners.presence(&client);
                    request.extensions_mut().insert(Caller { client, who: who.clone() });
                    while_present(presence, next.run(request)).await
                }
            }
        }
    };
    if let Some(RefusedWith(code)) = response.extensions().get() {
        app.audit.refused(&who, code);
    }
    stamp(if of_oip { oip::reworded(response) } else { response }, &id)
}

/// Gives a request up whose client is removed meanwhile; what it has asked for is dropped, its jobs are cancelled.
async fn while_present(presence: Option<Presence>, answered: impl Future<Output = Response>) -> Response {
    let Some(mut presence) = presence else { return answered.await };
    tokio::select! {
        biased;
        () = presence.ended() => {
            let message = "the operator has removed this client";
            ApiError::new(StatusCode::UNAUTHORIZED, "client_removed", message).into_response()
        }
        response = answered => response,
    }
}

/// A path that no route has is nobody's secret: it is answered with 404 where a client is known, 401 where not.
fn surface_of(request: &Request) -> Surface {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let here = || Route::ALL.into_iter().map(Route::place).filter(|(_, route, _)| Some(*route) == path);
    // A method that the path does not have is refused behind this; nobody learns of it who may not use the others.
    let place = here().find(|(method, ..)| method == request.method()).or_else(|| here().next());
    place.map_or(Surface::Open, |(_, _, surface)| surface)
}

fn stamp(mut response: Response, id: &RequestId) -> Response {
    let value = HeaderValue::from_str(&id.0).expect("an id is hexadecimal");
    response.headers_mut().insert("x-request-id", value);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_and_message_is_in_the_table_of_capabilities() {
        let page = include_str!("../../docs/capabilities.md");
        let listed =
            |word: &str| page.lines().filter(|line| line.starts_with(&format!("| {word} |"))).count();
        for route in Route::ALL {
            let (method, path, _) = route.place();
            assert_eq!(listed(&format!("`{method} {path}`")), 1, "{method} {path}");
        }
        let methods = ["GET", "POST", "PUT", "DELETE"];
        let routes = page
            .lines()
            .filter(|line| methods.iter().any(|method| line.starts_with(&format!("| `{method} "))))
            .count();
        assert_eq!(routes, Route::ALL.len(), "the page has a route that is none");
        let worker = include_str!("../../protocol/src/worker.rs");
        let convert = include_str!("../../protocol/src/convert.rs");
        let fileguard = include_str!("../../protocol/src/fileguard.rs");
        let audio = include_str!("../../protocol/src/audio.rs");
        for (source, name) in [
            (worker, "ToWorker"),
            (worker, "FromWorker"),
            (convert, "ToConverter"),
            (convert, "FromConverter"),
            (fileguard, "ToFileguard"),
            (fileguard, "FromFileguard"),
            (fileguard, "FileRequest"),
            (fileguard, "FileReply"),
            (audio, "ToAudio"),
            (audio, "FromAudio"),
        ] {
            let row = format!("`{name}`: {}", variants(source, name).join(", "));
            assert_eq!(listed(&row), 1, "{row}");
        }
    }

    /// The variants of an enum, from its source as rustfmt writes it.
    fn variants(source: &str, name: &str) -> Vec<String> {
        let after = source.split_once(&format!("pub enum {name} {{\n")).expect("it is there").1;
        let body = after.split_once("\n}").expect("it ends").0;
        let names = body
            .lines()
            .filter_map(|line| line.strip_prefix("    ").filter(|rest| rest.starts_with(char::is_uppercase)));
        names
            .map(|rest| format!("`{}`", rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or(rest)))
            .collect()
    }

    #[test]
    fn every_route_is_listed_once_and_only_the_open_ones_need_no_client() {
        let mut places: Vec<_> =
            Route::ALL.iter().map(|route| format!("{} {}", route.place().0, route.place().1)).collect();
        places.sort();
        places.dedup();
        assert_eq!(places.len(), Route::ALL.len());
        let of = |wanted: Surface| {
            let here = Route::ALL.iter().filter(|route| route.place().2 == wanted);
            here.map(|route| route.place().1).collect::<Vec<_>>()
        };
        assert_eq!(
            of(Surface::Open),
            ["/health", "/openapi.json", "/v2/health/live", "/v2/health/ready", "/v2"]
        );
        assert_eq!(of(Surface::Metrics), ["/metrics"]);
        assert_eq!(
            of(Surface::Own),
            [
                "/v2/models/{model}",
                "/v2/models/{model}/versions/{version}",
                "/v2/models/{model}/ready",
                "/v2/models/{model}/versions/{version}/ready",
                "/v2/repository/index",
                "/jobs/{job}",
                "/usage",
                "/grants",
                "/grants/{grant}",
                "/grants/{grant}",
                "/audio/captures",
                "/audio/captures/{capture}/pause",
                "/audio/captures/{capture}/resume",
                "/audio/captures/{capture}/stop"
            ]
        );
        let begins = ["/grants", "/audio/captures", "/v2/models/"];
        let public =
            |path: &&str| path.contains("/v1/") || begins.iter().any(|begin| path.starts_with(begin));
        assert!(of(Surface::Public).iter().all(public));
        assert!(of(Surface::Admin).iter().all(|path| !path.contains("/v1/")));
    }
}
