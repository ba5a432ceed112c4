//! Whether the disk still holds what runs.
//!
//! Loaded bytes are in sealed memory, so a change on the disk can't reach them. But it says that somebody is at work in
//! the models' folder, and that the next load would be of something else.

use super::Dispatcher;
use super::models::{Source, note_refused};
use crate::alerts::{Kind, News};
use crate::clock;
use crate::packages::{Change, Found, Package, PackagesError};
use ringfence_models::Stamps;
use ringfence_scheduler::ModelId;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// How often the stamps of loaded packages are compared.
const LOOK: Duration = Duration::from_secs(2);

/// A change of a loaded package's files, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct ChangeView {
    /// What is wrong with what lies there, in one sentence.
    pub(crate) reason: String,
    /// The file, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<String>,
    /// Digest that runs: the file's, or else the package's.
    pub(crate) running: String,
    /// Digest on the disk, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) found: Option<String>,
    /// When it was first seen, in Unix seconds.
    pub(crate) since: u64,
}

/// What was last judged of a package's files.
struct Judged {
    stamps: Stamps,
    /// The disk could not be read at the last look; said once.
    unreadable: bool,
}

impl Dispatcher {
    /// Looks after the files of loaded packages for as long as the server runs.
    pub(crate) async fn keep_comparing(self: Arc<Self>) {
        let mut judged = BTreeMap::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let held = self.lock().models.held();
            // What is no longer loaded is read and verified before it is again.
            judged.retain(|id, _| held.iter().any(|(held, _, _)| held == id));
            self.lock().models.forget_changes(|id| held.iter().all(|(held, _, _)| *held != id));
            for (id, source, package) in held {
                let last = judged
                    .entry(id)
                    .or_insert_with(|| Judged { stamps: package.stamps.clone(), unreadable: false });
                self.compare(id, &source, package, last).await;
            }
        }
    }

    async fn compare(&self, id: ModelId, source: &Source, package: Arc<Package>, last: &mut Judged) {
        let (packages, known) = (self.packages.clone(), last.stamps.clone());
        // Off the async threads: it may wait for the disk, and read all of the package.
        let looked = tokio::task::spawn_blocking(move || packages.compare(&package, &known)).await;
        match looked.map_err(|error| error.to_string()).and_then(|found| found.map_err(|e| text(&e))) {
            Ok(None) => last.unreadable = false,
            Ok(Some(Found { stamps, change })) => {
                *last = Judged { stamps, unreadable: false };
                self.lock().models.changed(id, change);
            }
            // It says nothing about the package: what was known stays, and the next look tries again.
            Err(error) if !last.unreadable => {
                last.unreadable = true;
                tracing::warn!(model = source.name, error, "can't compare the package with the disk");
            }
            Err(_) => {}
        }
    }
}

fn text(error: &PackagesError) -> String {
    error.to_string()
}

impl ChangeView {
    fn new(change: Change) -> Self {
        let Change { reason, file, running, found } = change;
        Self { reason, file, running, found, since: clock::unix_seconds() }
    }
}

impl super::models::Models {
    /// Takes the verdict over the files of a loaded package: an alert, or its end.
    fn changed(&mut self, id: ModelId, change: Option<Change>) {
        let (alerts, audit, device) = (self.alerts.clone(), self.audit.clone(), self.device_name(id));
        let Some(model) = self.get_mut(id) else { return };
        match (change.map(ChangeView::new), &model.change) {
            (None, None) => {}
            (None, Some(_)) => {
                tracing::info!(model = model.name, "the disk holds again what runs");
                model.change = None;
            }
            (Some(new), old) => {
                let since = old.as_ref().map_or(new.since, |old| old.since);
                let new = ChangeView { since, ..new };
                if old.as_ref() != Some(&new) {
                    let ChangeView { reason, file, running, found, .. } = &new;
                    tracing::warn!(model = model.name, reason, file, running, found, "model changed on disk");
                    metrics::counter!("ringfence_package_changes_total", "model" => model.name.clone())
                        .increment(1);
                    let message = format!("{reason}: {}", file.as_deref().unwrap_or("the package"));
                    let kind = Kind::PackageChanged;
                    alerts.raise(News { kind, model: &model.name, device: &device, rung: None, message });
                    note_refused(&audit, &model.name, "changed_on_disk");
                }
                model.change = Some(new);
            }
        }
    }
}
