//! `GET /openapi.json`: the document made from the handlers' own types.

use super::{
    admin, alerts, audio, captures, chat, completions, files, grants, health, jobs, oip, openai, quotas,
    trace,
};
use axum::Json;
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(title = "Ringfence", description = "Local inference for the apps of one machine."),
    paths(
        health::health,
        openai::embeddings,
        chat::chat,
        completions::completions,
        audio::transcriptions,
        audio::translations,
        openai::models,
        openai::model,
        oip::live,
        oip::ready,
        oip::server,
        oip::model,
        oip::model_version,
        oip::model_ready,
        oip::model_version_ready,
        oip::infer,
        oip::infer_version,
        oip::repository::index,
        oip::repository::load,
        oip::repository::unload,
        jobs::job,
        jobs::usage,
        grants::list,
        grants::ask,
        grants::show,
        grants::revoke,
        grants::claim,
        grants::narrow,
        grants::entries,
        files::read,
        files::write,
        captures::list,
        captures::start,
        captures::pause,
        captures::resume,
        captures::stop,
        captures::renew,
        captures::push,
        grants::approve,
        grants::deny,
        admin::status,
        admin::workers,
        admin::models,
        admin::drill_worker,
        admin::reload_models,
        admin::load_model,
        admin::unload_model,
        admin::drill_model,
        admin::model_logs,
        admin::clients,
        admin::add_client,
        admin::remove_client,
        admin::keys,
        admin::add_key,
        admin::revoke_key,
        quotas::show,
        quotas::replace,
        trace::record,
        alerts::alerts,
        admin::metrics
    )
)]
struct Document;

/// `GET /openapi.json`
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Route;

    #[test]
    fn every_route_but_this_one_and_the_prefixed_ones_is_in_the_document() {
        let document = Document::openapi();
        let mut documented: Vec<_> = document.paths.paths.keys().cloned().collect();
        let mut routes: Vec<_> = Route::ALL
            .iter()
            .map(|route| route.place().1.to_owned())
            .filter(|path| path != "/openapi.json" && !path.starts_with("/openai/"))
            .collect();
        routes.sort();
        routes.dedup();
        documented.sort();
        assert_eq!(documented, routes);
    }
}
