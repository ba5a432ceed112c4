//! The waiting jobs of one model: a line for each client, and the order of the lines.

use crate::config::{Class, Order};
use crate::ids::{ClientId, JobId, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Waiting jobs of one model. Each change takes logarithmic time.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// All by arrival.
    jobs: BTreeSet<(u64, JobId)>,
    lines: BTreeMap<ClientId, Line>,
    /// Every line by its place.
    places: BTreeSet<(Place, ClientId)>,
    /// When a line's first job will count as one of the first class.
    aging: BTreeSet<(Time, ClientId)>,
    /// For each class, jobs and sum of weights.
    sums: [(u64, u64); 3],
}

/// What a client is worth in the order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) class: Class,
    /// Weighted device time that it has had.
    pub(crate) counter: u64,
    pub(crate) weight: u16,
    /// What must be added to compare its counter with those of the first class.
    pub(crate) to_first: i128,
}

/// A job that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) job: JobId,
    /// Its place in the order of arrival.
    pub(crate) arrival: u64,
    /// When it counts as one of the first class.
    pub(crate) ages: Time,
}

/// The waiting jobs of one client, by arrival.
#[derive(Debug)]
struct Line {
    jobs: BTreeMap<u64, (JobId, Time)>,
    standing: Standing,
    /// The first job has waited for so long that it counts as one of the first class.
    aged: bool,
    place: Place,
}

/// Class, then counter, then arrival of the first job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    class: Class,
    counter: i128,
    arrival: u64,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// How many jobs of this client wait here.
    pub(crate) fn of(&self, client: ClientId) -> usize {
        self.lines.get(&client).map_or(0, |line| line.jobs.len())
    }

    /// Jobs of better classes than this, and the sum of weights of those in it.
    pub(crate) fn weights(&self, class: Class) -> (u64, u64) {
        let better = self.sums[..class as usize].iter().map(|(jobs, _)| jobs).sum();
        (better, self.sums[class as usize].1)
    }

    /// All by arrival.
    pub(crate) fn by_arrival(&self) -> impl Iterator<Item = (u64, JobId)> {
        self.jobs.iter().copied()
    }

    /// A client's jobs by arrival.
    pub(crate) fn line(&self, client: ClientId) -> impl Iterator<Item = JobId> {
        self.lines.get(&client).into_iter().flat_map(|line| line.jobs.values().map(|(job, _)| *job))
    }

    pub(crate) fn push(&mut self, client: ClientId, waiting: Waiting, standing: Standing) {
        let Waiting { job, arrival, ages } = waiting;
        assert!(self.jobs.insert((arrival, job)), "a job waits once");
        let mut line = self.take(client).unwrap_or_else(|| Line::new(standing));
        line.aged &= line.jobs.first_key_value().is_some_and(|(first, _)| *first < arrival);
        line.jobs.insert(arrival, (job, ages));
        line.standing = standing;
        self.put(client, line);
    }

    pub(crate) fn remove(&mut self, client: ClientId, arrival: u64, job: JobId) {
        assert!(self.jobs.remove(&(arrival, job)), "a waiting job is in its queue");
        let mut line = self.take(client).expect("a waiting job is in its client's line");
        line.aged &= line.jobs.first_key_value().is_some_and(|(first, _)| *first != arrival);
        line.jobs.remove(&arrival);
        if !line.jobs.is_empty() {
            self.put(client, line);
        }
    }

    /// A client's standing has changed.
    pub(crate) fn move_line(&mut self, client: ClientId, standing: Standing) {
        if let Some(mut line) = self.take(client) {
            // What it was compared by when it aged stays, or it could be overtaken again and again.
            let to_first = if line.aged { line.standing.to_first } else { standing.to_first };
            line.standing = Standing { to_first, ..standing };
            self.put(client, line);
        }
    }

    /// Lines whose first job has waited long enough by now count as of the first class.
    pub(crate) fn age(&mut self, now: Time, standing: impl Fn(ClientId) -> Standing) {
        while let Some((_, client)) = self.aging.first().copied().filter(|(ages, _)| *ages <= now) {
            let mut line = self.take(client).expect("what ages is a line");
            line.standing = standing(client);
            line.aged = true;
            self.put(client, line);
        }
    }

    /// The job that runs next.
    pub(crate) fn next(&self, order: Order) -> Option<JobId> {
        match order {
            Order::Arrival => self.jobs.first().map(|(_, job)| *job),
            Order::Fair => {
                let (_, client) = self.places.first()?;
                self.lines[client].jobs.first_key_value().map(|(_, (job, _))| *job)
            }
        }
    }

    /// The lines in their order.
    pub(crate) fn order(&self) -> impl Iterator<Item = (Place, ClientId)> {
        self.places.iter().copied()
    }

    fn take(&mut self, client: ClientId) -> Option<Line> {
        let line = self.lines.remove(&client)?;
        self.places.remove(&(line.place, client));
        let (jobs, weights) = &mut self.sums[line.standing.class as usize];
        *jobs -= line.jobs.len() as u64;
        *weights -= u64::from(line.standing.weight);
        if let Some((_, (_, ages))) = line.jobs.first_key_value() {
            self.aging.remove(&(*ages, client));
        }
        Some(line)
    }

    fn put(&mut self, client: ClientId, mut line: Line) {
        let (arrival, (_, ages)) = line.jobs.first_key_value().expect("an empty line is not kept");
        let Standing { class, counter, weight, to_first } = line.standing;
        let (jobs, weights) = &mut self.sums[class as usize];
        *jobs += line.jobs.len() as u64;
        *weights += u64::from(weight);
        line.place = match line.aged {
            true => {
                Place { class: Class::Realtime, counter: i128::from(counter) + to_first, arrival: *arrival }
            }
            false => Place { class, counter: i128::from(counter), arrival: *arrival },
        };
        if !line.aged && class != Class::Realtime {
            self.aging.insert((*ages, client));
        }
        self.places.insert((line.place, client));
        self.lines.insert(client, line);
    }
}

impl Place {
    /// Where a line is after its client has had so much more.
    pub(crate) fn advance(&mut self, charge: u64) {
        self.counter += i128::from(charge);
    }
}

impl Line {
    fn new(standing: Standing) -> Self {
        let place = Place { class: standing.class, counter: 0, arrival: 0 };
        Self { jobs: BTreeMap::new(), standing, aged: false, place }
    }
}
