//! What an operator wants to be told of: a bounded ring in memory, which others wait at. Nothing of a client's contents is
//! in it.

use crate::clock;
use crate::oom::Rung;
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use utoipa::ToSchema;

/// The alerts that are remembered; older ones are gone.
pub(crate) const ALERTS_MAX: usize = 1_024;

/// Of one kind about one model there is at most one alert in so long; those between are counted in the next.
const SAME_EVERY: Duration = Duration::from_secs(1);

/// The longest message, in characters: it may hold a driver's or a file's word.
const MESSAGE_CHARS_MAX: usize = 512;

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Something wanted too much memory and was stopped.
    OutOfMemory,
    /// A package can't be used.
    PackageRefused,
    /// The files of a loaded package are no longer those that run.
    PackageChanged,
    /// A GPU failed, or is lost.
    DeviceFailed,
    /// A worker's sandbox is not what it must be, or it sent what it must not.
    WorkerIllegal,
}

/// One alert.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Alert {
    /// Its number in this run, from 1.
    pub(crate) id: u64,
    /// When, in seconds since 1970.
    pub(crate) time: u64,
    /// What it is about.
    pub(crate) kind: Kind,
    /// Which model.
    pub(crate) model: String,
    /// Where the model computes.
    pub(crate) device: String,
    /// What stopped it, if it wanted too much memory.
    pub(crate) rung: Option<Rung>,
    /// What happened, for people.
    pub(crate) message: String,
    /// Others of this kind about this model since the last one that is here.
    pub(crate) left_out: u64,
}

/// The alerts of this run.
#[derive(Clone, Default)]
pub(crate) struct Alerts(Arc<Shared>);

#[derive(Default)]
struct Shared {
    ring: Mutex<Ring>,
    came: Notify,
}

#[derive(Default)]
struct Ring {
    last: u64,
    alerts: VecDeque<Alert>,
    /// When there was one of this kind about this model, and how many were left out since.
    same: HashMap<(Kind, String), (Instant, u64)>,
}

/// What an alert is about, before it has a number.
#[derive(Debug)]
pub(crate) struct News<'a> {
    pub(crate) kind: Kind,
    pub(crate) model: &'a str,
    pub(crate) device: &'a str,
    pub(crate) rung: Option<Rung>,
    pub(crate) message: String,
}

impl Alerts {
    /// Tells whoever waits, unless it was told the same a moment ago.
    pub(crate) fn raise(&self, news: News<'_>) {
        if self.ring().take(news, clock::instant()) {
            self.0.came.notify_waiters();
        }
    }

    /// Those after this number, the oldest first, and the number of the last one there is.
    pub(crate) fn after(&self, id: u64) -> (Vec<Alert>, u64) {
        let ring = self.ring();
        (ring.alerts.iter().filter(|alert| alert.id > id).cloned().collect(), ring.last)
    }

    /// The same, once there is one, or after this long.
    pub(crate) async fn wait(&self, id: u64, within: Duration) -> (Vec<Alert>, u64) {
        let came = async {
            loop {
                let next = self.0.came.notified();
                tokio::pin!(next);
                // From now on none is missed.
                next.as_mut().enable();
                let found = self.after(id);
                if !found.0.is_empty() {
                    return found;
                }
                next.await;
            }
        };
        tokio::time::timeout(within, came).await.unwrap_or_else(|_| self.after(id))
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().expect("no thread panics with this lock")
    }
}

impl Ring {
    fn take(&mut self, News { kind, model, device, rung, message }: News<'_>, now: Instant) -> bool {
        self.same.retain(|_, (told, left_out)| *left_out > 0 || now.duration_since(*told) < SAME_EVERY);
        // There are as many kinds and models as there are; a home has at most 1,024 of these.
        let same = (kind, model.to_owned());
        let left_out = match self.same.get_mut(&same) {
            Some((told, left_out)) if now.duration_since(*told) < SAME_EVERY => {
                *left_out += 1;
                return false;
            }
            Some((told, left_out)) => {
                *told = now;
                std::mem::take(left_out)
            }
            None => {
                self.same.insert(same, (now, 0));
                0
            }
        };
        self.last += 1;
        let message = message.chars().take(MESSAGE_CHARS_MAX).collect();
        let (model, device) = (model.to_owned(), device.to_owned());
        let (id, time) = (self.last, clock::unix_seconds());
        self.alerts.push_back(Alert { id, time, kind, model, device, rung, message, left_out });
        if self.alerts.len() > ALERTS_MAX {
            self.alerts.pop_front();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(model: &str) -> News<'_> {
        let (kind, message) = (Kind::OutOfMemory, "m".repeat(MESSAGE_CHARS_MAX + 9));
        News { kind, model, device: "cpu", rung: Some(Rung::KilledByKernel), message }
    }

    #[test]
    fn the_same_is_told_once_a_second_and_then_with_what_was_left_out() {
        let (mut ring, start) = (Ring::default(), clock::instant());
        let at = |millis| start + Duration::from_millis(millis);
        assert!(ring.take(news("a"), start));
        assert!(!ring.take(news("a"), at(10)) && !ring.take(news("a"), at(999)));
        assert!(ring.take(news("b"), at(11)), "another model is other news");
        assert!(ring.take(news("a"), at(1_000)));
        let left_out: Vec<u64> = ring.alerts.iter().map(|alert| alert.left_out).collect();
        assert_eq!(left_out, [0, 0, 2]);
        assert_eq!(ring.alerts[0].message.len(), MESSAGE_CHARS_MAX);
    }

    #[test]
    fn the_oldest_are_forgotten_and_numbers_go_on() {
        let alerts = Alerts::default();
        let names: Vec<String> = (0..ALERTS_MAX + 5).map(|number| number.to_string()).collect();
        names.iter().for_each(|name| alerts.raise(news(name)));
        let (all, last) = alerts.after(0);
        assert_eq!((all.len(), all[0].id, last), (ALERTS_MAX, 6, ALERTS_MAX as u64 + 5));
        assert_eq!(alerts.after(last).0.len(), 0);
    }

    #[tokio::test]
    async fn whoever_waits_is_told_and_whoever_waited_long_enough_hears_nothing() {
        let alerts = Alerts::default();
        assert_eq!(alerts.wait(0, Duration::from_millis(5)).await.0.len(), 0);
        let waiting = tokio::spawn({
            let alerts = alerts.clone();
            async move { alerts.wait(0, Duration::from_secs(60)).await }
        });
        tokio::task::yield_now().await;
        alerts.raise(news("a"));
        assert_eq!(waiting.await.expect("it does not panic").0[0].model, "a");
    }
}
