//! The waiting jobs of one model: a line for each client, and the order of the lines.

use crate::config::{Class, Order};
use crate::ids::{ClientId, JobId, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Waiting jobs of one model. Each change takes logarithmic time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    /// All by arrival.
    jobs: BTreeSet<(u64, JobId)>,
    lines: BTreeMap<ClientId, Line>,
    /// The lines of each class.
    classes: [Lines; 3],
}

/// The lines of one class.
#[derive(Clone, Debug, Default)]
struct Lines {
    places: BTreeSet<(Place, ClientId)>,
    jobs: u64,
    weights: u64,
    /// When a job of it last started, or the first one came.
    served: Time,
}

/// What a client is worth in the order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) class: Class,
    pub(crate) weight: u16,
    /// Weighted device time that it has had.
    pub(crate) counter: u64,
}

/// The waiting jobs of one client, by arrival.
#[derive(Clone, Debug)]
struct Line {
    jobs: BTreeMap<u64, JobId>,
    standing: Standing,
}

/// Where a job stands among the next ones of all models: the least comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    class: usize,
    place: Place,
}

/// In a class: counter, then arrival of the first job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    counter: u64,
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
        let better = self.classes[..class as usize].iter().map(|lines| lines.jobs).sum();
        (better, self.classes[class as usize].weights)
    }

    /// All by arrival.
    pub(crate) fn by_arrival(&self) -> impl Iterator<Item = (u64, JobId)> {
        self.jobs.iter().copied()
    }

    /// A client's jobs by arrival.
    pub(crate) fn line(&self, client: ClientId) -> impl Iterator<Item = JobId> {
        self.lines.get(&client).into_iter().flat_map(|line| line.jobs.values().copied())
    }

    /// The lines in their order, each with its class.
    pub(crate) fn order(&self) -> impl Iterator<Item = (usize, Place, ClientId)> {
        let of = |(class, lines): (usize, &Lines)| {
            lines.places.iter().map(move |(place, client)| (class, *place, *client)).collect::<Vec<_>>()
        };
        self.classes.iter().enumerate().flat_map(of)
    }

    pub(crate) fn push(&mut self, now: Time, client: ClientId, job: JobId, arrival: u64, standing: Standing) {
        assert!(self.jobs.insert((arrival, job)), "a job waits once");
        let mut line = self.take(client).unwrap_or(Line { jobs: BTreeMap::new(), standing });
        line.jobs.insert(arrival, job);
        let lines = &mut self.classes[standing.class as usize];
        if lines.places.is_empty() {
            lines.served = lines.served.max(now);
        }
        self.put(client, Line { standing, ..line });
    }

    pub(crate) fn remove(&mut self, client: ClientId, arrival: u64, job: JobId) {
        assert!(self.jobs.remove(&(arrival, job)), "a waiting job is in its queue");
        let mut line = self.take(client).expect("a waiting job is in its client's line");
        line.jobs.remove(&arrival);
        if !line.jobs.is_empty() {
            self.put(client, line);
        }
    }

    /// A client's standing has changed.
    pub(crate) fn move_line(&mut self, now: Time, client: ClientId, standing: Standing) {
        let Some(line) = self.lines.get_mut(&client) else { return };
        let lines = &mut self.classes[line.standing.class as usize];
        lines.places.remove(&(line.place(), client));
        lines.jobs -= line.jobs.len() as u64;
        lines.weights -= u64::from(line.standing.weight);
        let was = std::mem::replace(&mut line.standing, standing).class;
        let lines = &mut self.classes[standing.class as usize];
        // A class that nobody waited in begins to age now.
        if lines.places.is_empty() && was != standing.class {
            lines.served = lines.served.max(now);
        }
        lines.places.insert((line.place(), client));
        lines.jobs += line.jobs.len() as u64;
        lines.weights += u64::from(standing.weight);
    }

    /// A job of this client is about to start.
    pub(crate) fn serve(&mut self, now: Time, client: ClientId) {
        let class = self.lines[&client].standing.class;
        self.classes[class as usize].served = now;
    }

    /// The job that runs next. Of the best class that waits, or of one that had no job started for as long as `aging`.
    pub(crate) fn next(&self, order: Order, now: Time, aging: Duration) -> Option<(Rank, JobId)> {
        if order == Order::Arrival {
            let (arrival, job) = *self.jobs.first()?;
            return Some((Rank { class: 0, place: Place { counter: 0, arrival } }, job));
        }
        let due = |lines: &Lines| lines.served + aging <= now;
        let waiting = || self.classes.iter().enumerate().filter(|(_, lines)| !lines.places.is_empty());
        let best = waiting().next()?;
        let aged = waiting().skip(1).filter(|(_, lines)| due(lines));
        let (class, lines) = aged.min_by_key(|(_, lines)| lines.served).unwrap_or(best);
        let (place, client) = *lines.places.first().expect("a class that waits has a line");
        let (_, job) = self.lines[&client].jobs.first_key_value().expect("an empty line is not kept");
        // One that is due comes before the best of other models too.
        let first = Rank { class: 0, place: Place { counter: 0, ..place } };
        Some((if class > 0 && due(lines) { first } else { Rank { class, place } }, *job))
    }

    fn take(&mut self, client: ClientId) -> Option<Line> {
        let line = self.lines.remove(&client)?;
        let lines = &mut self.classes[line.standing.class as usize];
        lines.places.remove(&(line.place(), client));
        lines.jobs -= line.jobs.len() as u64;
        lines.weights -= u64::from(line.standing.weight);
        Some(line)
    }

    fn put(&mut self, client: ClientId, line: Line) {
        let lines = &mut self.classes[line.standing.class as usize];
        lines.places.insert((line.place(), client));
        lines.jobs += line.jobs.len() as u64;
        lines.weights += u64::from(line.standing.weight);
        self.lines.insert(client, line);
    }
}

impl Place {
    /// Where a line is after its client has had so much more.
    pub(crate) fn advance(&mut self, charge: u64) {
        self.counter = self.counter.saturating_add(charge);
    }
}

impl Line {
    fn place(&self) -> Place {
        let (arrival, _) = self.jobs.first_key_value().expect("an empty line is not kept");
        Place { counter: self.standing.counter, arrival: *arrival }
    }
}
