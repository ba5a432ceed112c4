//! Turns: steps are shared by domains and their weights, so that nobody gets more by bringing more jobs.

use std::collections::BTreeMap;

/// Whose a job is, as far as a worker knows.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Jobs of one domain share a lane.
    pub domain: u64,
    /// The lane's share of steps beside others; at least 1.
    pub weight: u16,
}

/// The lanes of the domains that have jobs.
#[derive(Debug, Default)]
pub struct Lanes(BTreeMap<u64, Lane>);

/// The jobs of one domain together.
#[derive(Clone, Copy, Debug)]
struct Lane {
    /// What it has had, for its weight.
    counter: u64,
    weight: u16,
}

/// Keeps the resolution of counters for the largest weight.
const COUNTER_SCALE: u64 = 1 << 16;

impl Lanes {
    /// A job comes. A lane that comes with it has no claim on the steps before it came.
    pub fn join(&mut self, share: Share) {
        let Share { domain, weight } = share;
        let least = self.0.values().map(|lane| lane.counter).min().unwrap_or(0);
        self.0.entry(domain).or_insert(Lane { counter: least, weight }).weight = weight;
    }

    /// Forgets the lanes of other domains.
    pub fn retain(&mut self, has_jobs: impl Fn(u64) -> bool) {
        self.0.retain(|domain, _| has_jobs(*domain));
    }

    /// Those that want nothing now have no claim on the steps that others take meanwhile.
    pub fn rest(&mut self, wants: impl Fn(u64) -> bool) {
        let wanting = self.0.iter().filter(|(domain, _)| wants(**domain));
        let Some(least) = wanting.map(|(_, lane)| lane.counter).min() else { return };
        let resting = self.0.iter_mut().filter(|(domain, _)| !wants(**domain));
        resting.for_each(|(_, lane)| lane.counter = lane.counter.max(least));
    }

    /// Of these domains the one that has had the least for its weight.
    pub fn next(&self, wants: impl Fn(u64) -> bool) -> Option<u64> {
        let wanting = self.0.iter().filter(|(domain, _)| wants(**domain));
        wanting.min_by_key(|(domain, lane)| (lane.counter, **domain)).map(|(domain, _)| *domain)
    }

    /// A domain has had so much.
    pub fn charge(&mut self, domain: u64, amount: u64) {
        if let Some(lane) = self.0.get_mut(&domain) {
            let had = amount.saturating_mul(COUNTER_SCALE) / u64::from(lane.weight);
            lane.counter = lane.counter.saturating_add(had);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_weights_and_who_comes_late_has_no_claim_on_what_was() {
        let mut lanes = Lanes::default();
        lanes.join(Share { domain: 1, weight: 1 });
        lanes.join(Share { domain: 2, weight: 3 });
        let mut had = [0; 4];
        let mut take = |lanes: &mut Lanes, times: usize| {
            for _ in 0..times {
                let domain = lanes.next(|_| true).unwrap();
                lanes.charge(domain, 10);
                had[domain as usize] += 1;
            }
            had
        };
        assert_eq!(take(&mut lanes, 400), [0, 100, 300, 0]);
        lanes.join(Share { domain: 3, weight: 1 });
        assert_eq!(take(&mut lanes, 500), [0, 200, 600, 100]);
        // The second is away for long, and comes back as one that is new.
        for _ in 0..100 {
            lanes.rest(|domain| domain != 2);
            let domain = lanes.next(|domain| domain != 2).unwrap();
            lanes.charge(domain, 10);
        }
        let near = |had: [u64; 4]| had.iter().zip([0, 300, 900, 200]).all(|(a, b)| a.abs_diff(b) <= 2);
        let had = take(&mut lanes, 500);
        assert!(near(had), "{had:?}");
        assert_eq!(lanes.next(|domain| domain == 2), Some(2));
        lanes.retain(|domain| domain == 2);
        assert_eq!(lanes.next(|domain| domain == 1), None);
    }
}
