//! Refusals, counted: a client that is refused a thousand times a second has one entry for that second.

use super::Who;
use std::collections::BTreeMap;

/// Clients, and codes of each, that are told apart within a second. The rest is one number.
const TOLD_APART_MAX: usize = 1_024;
/// The code of that number.
const OTHERS: &str = "others";

/// What was refused since they were last taken.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    counts: BTreeMap<(Option<String>, Option<u32>, &'static str), u64>,
    others: u64,
}

/// Refusals of one client and code.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) who: Who,
    pub(super) code: &'static str,
    pub(super) count: u64,
}

impl Refusals {
    /// Counts one.
    pub(super) fn count(&mut self, who: &Who, code: &'static str) {
        let key = (who.client.clone(), who.uid, code);
        if let Some(count) = self.counts.get_mut(&key) {
            *count += 1;
        } else if self.counts.len() < TOLD_APART_MAX {
            self.counts.insert(key, 1);
        } else {
            self.others += 1;
        }
    }

    /// What was counted, and begins anew.
    pub(super) fn take(&mut self) -> Vec<Refused> {
        let told_apart = std::mem::take(&mut self.counts).into_iter();
        let others = std::mem::take(&mut self.others);
        let others = (others > 0).then(|| Refused { who: Who::server(), code: OTHERS, count: others });
        let refused = |((client, uid, code), count)| Refused {
            who: Who { client, uid, ..Who::default() },
            code,
            count,
        };
        told_apart.map(refused).chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_a_client_and_code_are_one_and_those_of_too_many_are_one_number() {
        let mut refusals = Refusals::default();
        let anna = Who { uid: Some(7), request: Some("q".to_owned()), ..Who::client("anna") };
        (0..1_000).for_each(|_| refusals.count(&anna, "rate_jobs"));
        (0..TOLD_APART_MAX + 5).for_each(|number| refusals.count(&Who::client(&number.to_string()), "a"));
        let taken = refusals.take();
        assert_eq!(taken.len(), TOLD_APART_MAX + 1);
        let of_anna = Refused { who: Who { request: None, ..anna }, code: "rate_jobs", count: 1_000 };
        assert!(taken.contains(&of_anna));
        assert_eq!(taken.last(), Some(&Refused { who: Who::server(), code: OTHERS, count: 6 }));
        assert_eq!(refusals.take(), []);
    }
}
