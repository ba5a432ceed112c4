//! Traffic of one client: connections that send one job after the other, and check each answer against the one that
//! the same job had before the stress began.

use super::server::Server;
use super::stats::cosine;
use crate::bench::words;
use crate::clock;
use crate::error::CliError;
use crate::http::{Address, Ask, Connection};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Below this cosine an answer is another one than before.
pub const COSINE_MIN: f64 = 0.9999;
/// Answers that are remembered; those beyond are not, and the scenario says so.
pub const HEARD_MAX: usize = 500_000;
/// Different jobs of one kind of traffic.
const JOBS: usize = 8;
/// A refused connection waits at least and at most so long, whatever the server says.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// How often it is looked whether something came.
const LOOK_EVERY: Duration = Duration::from_millis(2);

const PATH: &str = "/v1/embeddings";

/// One job, and what the answer must be.
#[derive(Clone, Debug)]
pub struct Job {
    body: Bytes,
    texts: u32,
    expected: Vec<Vec<f32>>,
}

/// How jobs are sent.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// The client's socket.
    pub address: Address,
    /// Sent in turn; at least one.
    pub jobs: Arc<Vec<Job>>,
    /// Connections, each with one job at a time.
    pub connections: usize,
    /// From one start to the next on a connection; back to back where it is zero.
    pub every: Duration,
    /// Whether a refused connection waits as long as the server says.
    pub polite: bool,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Answered as before.
    Right,
    /// Answered otherwise.
    Wrong,
    /// Not taken.
    Refused {
        /// The stable code.
        code: String,
        /// When to come back, if the server said so.
        retry_after_ms: Option<u64>,
    },
    /// Neither: an error after it was taken, or no answer.
    Lost(String),
}

/// One job that ended.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When it was sent.
    pub sent: Instant,
    /// When its answer was there.
    pub ended: Instant,
    /// Texts in it.
    pub texts: u32,
    /// How it ended.
    pub ending: Ending,
}

/// All jobs of a traffic that ended.
#[derive(Debug, Default)]
pub struct Log {
    heard: Mutex<Vec<Heard>>,
    beyond: AtomicU64,
}

/// Traffic under way; it ends when this is dropped.
pub struct Running {
    log: Arc<Log>,
    stop: Arc<AtomicBool>,
    senders: JoinSet<()>,
}

/// Jobs of `texts` texts each, with the answers of now.
///
/// # Errors
/// Those of [`Connection`]: an undisturbed server answers.
pub async fn jobs(server: &Server, address: &Address, texts: u32) -> Result<Vec<Job>, CliError> {
    let mut connection = Connection::open(address).await?;
    let mut jobs = Vec::new();
    for body in words::bodies(&server.model, texts, server.tokens).into_iter().take(JOBS) {
        let mut job = Job { body, texts, expected: Vec::new() };
        let answer = connection.send(&job.ask()).await?;
        let unreadable = || CliError::Answer {
            request: answer.request.clone(),
            source: format!("no {texts} embeddings in base64").into(),
        };
        job.expected = embeddings(&answer.json()?).ok_or_else(unreadable)?;
        if job.expected.len() != texts as usize {
            return Err(unreadable());
        }
        jobs.push(job);
    }
    Ok(jobs)
}

fn embeddings(answer: &Value) -> Option<Vec<Vec<f32>>> {
    let decode = |item: &Value| {
        let bytes = STANDARD.decode(item["embedding"].as_str()?).ok()?;
        let number = |bytes: &[u8]| bytes.try_into().map(f32::from_le_bytes).ok();
        bytes.chunks(4).map(number).collect::<Option<Vec<f32>>>()
    };
    answer["data"].as_array()?.iter().map(decode).collect()
}

impl Job {
    fn ask(&self) -> Ask {
        Ask { body: self.body.clone(), ..Ask::plain(Method::POST, PATH) }
    }

    fn is_answered_by(&self, answer: &Value) -> bool {
        let Some(found) = embeddings(answer) else { return false };
        let alike = |(a, b): (&Vec<f32>, &Vec<f32>)| cosine(a, b) > COSINE_MIN;
        found.len() == self.expected.len() && found.iter().zip(&self.expected).all(alike)
    }

    /// Sends it once and waits for its end.
    pub async fn send(&self, address: &Address) -> Heard {
        self.send_on(&mut None, address).await
    }

    async fn send_on(&self, kept: &mut Option<Connection>, address: &Address) -> Heard {
        let sent = clock::now();
        let answer = async {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => Connection::open(address).await?,
            };
            let answer = connection.send(&self.ask()).await;
            // After a refusal the connection is as good as before; after anything else it is not.
            if matches!(answer, Ok(_) | Err(CliError::Refused { .. })) {
                *kept = Some(connection);
            }
            answer?.json()
        };
        let ending = match answer.await {
            Ok(answer) if self.is_answered_by(&answer) => Ending::Right,
            Ok(_) => Ending::Wrong,
            Err(CliError::Refused { code, retry_after_ms, status: 429 | 503, .. }) => {
                Ending::Refused { code, retry_after_ms }
            }
            Err(error) => Ending::Lost(error.code().to_owned()),
        };
        Heard { sent, ended: clock::now(), texts: self.texts, ending }
    }
}

impl Traffic {
    /// Begins to send.
    pub fn start(self) -> Running {
        let (log, stop) = (Arc::<Log>::default(), Arc::<AtomicBool>::default());
        let mut senders = JoinSet::new();
        for number in 0..self.connections {
            senders.spawn(sender(self.clone(), number, Arc::clone(&log), Arc::clone(&stop)));
        }
        Running { log, stop, senders }
    }
}

async fn sender(traffic: Traffic, number: usize, log: Arc<Log>, stop: Arc<AtomicBool>) {
    let mut kept = None;
    for turn in number.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let begun = clock::now();
        let job = &traffic.jobs[turn % traffic.jobs.len()];
        let heard = job.send_on(&mut kept, &traffic.address).await;
        let pause = pause(&heard.ending, traffic.polite);
        log.put(heard);
        let paced = traffic.every.saturating_sub(clock::now().saturating_duration_since(begun));
        let wait = paced.max(pause);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

fn pause(ending: &Ending, polite: bool) -> Duration {
    let (least, most) = PAUSE;
    match ending {
        Ending::Right | Ending::Wrong => Duration::ZERO,
        Ending::Lost(_) => least,
        Ending::Refused { retry_after_ms, .. } => {
            let said = retry_after_ms.filter(|_| polite).map_or(least, Duration::from_millis);
            said.clamp(least, most)
        }
    }
}

impl Running {
    /// What has ended until now.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Lets what is under way end; all of it is then in the log.
    pub async fn stop(mut self) -> Arc<Log> {
        self.stop.store(true, Ordering::Relaxed);
        while self.senders.join_next().await.is_some() {}
        Arc::clone(&self.log)
    }

    /// Leaves at once; what is under way is in no log.
    pub fn leave(self) -> Arc<Log> {
        Arc::clone(&self.log)
    }
}

impl Log {
    fn heard(&self) -> MutexGuard<'_, Vec<Heard>> {
        self.heard.lock().expect("no thread panics with this lock")
    }

    fn put(&self, heard: Heard) {
        let mut all = self.heard();
        if all.len() < HEARD_MAX {
            all.push(heard);
        } else {
            self.beyond.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Jobs that ended and are not remembered.
    pub fn beyond(&self) -> u64 {
        self.beyond.load(Ordering::Relaxed)
    }

    /// Jobs that ended like this.
    pub fn count(&self, wanted: impl Fn(&Ending) -> bool) -> usize {
        self.heard().iter().filter(|heard| wanted(&heard.ending)).count()
    }

    /// Jobs that were answered as before.
    pub fn right(&self) -> usize {
        self.count(|ending| *ending == Ending::Right)
    }

    /// Jobs that were answered otherwise.
    pub fn wrong(&self) -> usize {
        self.count(|ending| *ending == Ending::Wrong)
    }

    /// Jobs that were taken and not answered, by code.
    pub fn lost(&self) -> BTreeMap<String, usize> {
        self.by_code(|ending| match ending {
            Ending::Lost(code) => Some(code.clone()),
            Ending::Right | Ending::Wrong | Ending::Refused { .. } => None,
        })
    }

    /// Jobs that were not taken, by code.
    pub fn refused(&self) -> BTreeMap<String, usize> {
        self.by_code(|ending| match ending {
            Ending::Refused { code, .. } => Some(code.clone()),
            Ending::Right | Ending::Wrong | Ending::Lost(_) => None,
        })
    }

    fn by_code(&self, code: impl Fn(&Ending) -> Option<String>) -> BTreeMap<String, usize> {
        let mut codes = BTreeMap::new();
        for code in self.heard().iter().filter_map(|heard| code(&heard.ending)) {
            *codes.entry(code).or_default() += 1;
        }
        codes
    }

    /// Latencies of the right answers to jobs that were under way in this time, in milliseconds. A job that waited
    /// all of it is one of them.
    pub fn latencies_ms(&self, (from, to): (Instant, Instant)) -> Vec<f64> {
        let all = self.heard();
        let under_way = |heard: &&Heard| heard.sent < to && heard.ended >= from;
        let within = all.iter().filter(|heard| heard.ending == Ending::Right).filter(under_way);
        within.map(|heard| millis(heard.ended.saturating_duration_since(heard.sent))).collect()
    }

    /// Texts of the right answers that came in this time.
    pub fn texts(&self, (from, to): (Instant, Instant)) -> u64 {
        let all = self.heard();
        let within = all
            .iter()
            .filter(|heard| heard.ending == Ending::Right && heard.ended >= from && heard.ended < to);
        within.map(|heard| u64::from(heard.texts)).sum()
    }

    /// When the first right answer came to a job that was sent at `since` or later.
    pub fn success_after(&self, since: Instant) -> Option<Instant> {
        let all = self.heard();
        let after = all.iter().filter(|heard| heard.ending == Ending::Right && heard.sent >= since);
        after.map(|heard| heard.ended).min()
    }

    /// When the first right answer came at `since` or later, whenever its job was sent.
    pub fn answer_after(&self, since: Instant) -> Option<Instant> {
        let all = self.heard();
        let after = all.iter().filter(|heard| heard.ending == Ending::Right && heard.ended >= since);
        after.map(|heard| heard.ended).min()
    }

    /// Right answers to jobs that were sent at `since` or later.
    pub fn successes_after(&self, since: Instant) -> usize {
        let all = self.heard();
        all.iter().filter(|heard| heard.ending == Ending::Right && heard.sent >= since).count()
    }
}

/// Waits until `found` gives something, at most until then.
pub async fn until<T>(limit: Instant, found: impl Fn() -> Option<T>) -> Option<T> {
    loop {
        let found = found();
        if found.is_some() || clock::now() >= limit {
            return found;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Counts by code in words; empty for none.
pub fn in_words(codes: &BTreeMap<String, usize>) -> String {
    codes.iter().map(|(code, count)| format!("{count} {code}")).collect::<Vec<_>>().join(", ")
}

/// Milliseconds with what is behind the point.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(vectors: &[&[f32]]) -> Value {
        let item = |vector: &&[f32]| {
            let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
            json!({"embedding": STANDARD.encode(bytes)})
        };
        json!({"data": vectors.iter().map(item).collect::<Vec<_>>()})
    }

    #[test]
    fn an_answer_is_right_if_every_vector_is_that_of_before() {
        let expected = vec![vec![1.0, 0.0], vec![0.6, 0.8]];
        let job = Job { body: Bytes::new(), texts: 2, expected };
        let check = |vectors: &[&[f32]], right| assert_eq!(job.is_answered_by(&answer(vectors)), right);
        check(&[&[1.0, 0.0], &[0.6, 0.8]], true);
        check(&[&[1.0, 0.001], &[0.6, 0.8]], true);
        check(&[&[1.0, 0.1], &[0.6, 0.8]], false);
        check(&[&[0.6, 0.8], &[1.0, 0.0]], false);
        check(&[&[1.0, 0.0]], false);
        check(&[&[f32::NAN, 0.0], &[0.6, 0.8]], false);
        for odd in [json!({}), json!({"data": 7}), json!({"data": [{"embedding": "AAA"}, {}]})] {
            assert!(!job.is_answered_by(&odd), "{odd}");
        }
    }

    #[test]
    fn a_refused_connection_waits_a_bounded_time() {
        let refused = |retry_after_ms| Ending::Refused { code: "rate_jobs".to_owned(), retry_after_ms };
        let check = |ending: &Ending, polite, expected| {
            assert_eq!(pause(ending, polite), Duration::from_millis(expected), "{ending:?}");
        };
        check(&refused(Some(70)), true, 70);
        check(&refused(Some(70)), false, 5);
        check(&refused(Some(0)), true, 5);
        check(&refused(Some(u64::MAX)), true, 1_000);
        check(&refused(None), true, 5);
        check(&Ending::Right, true, 0);
    }

    #[test]
    fn the_log_tells_endings_and_times_apart() {
        let (log, start) = (Log::default(), clock::now());
        let at = |millis| start + Duration::from_millis(millis);
        let put = |sent, ended, ending| log.put(Heard { sent: at(sent), ended: at(ended), texts: 8, ending });
        put(0, 60, Ending::Right);
        put(100, 150, Ending::Right);
        put(200, 230, Ending::Lost("worker_died".to_owned()));
        put(300, 301, Ending::Refused { code: "rate_jobs".to_owned(), retry_after_ms: Some(9) });
        put(400, 470, Ending::Wrong);
        assert_eq!((log.right(), log.wrong()), (2, 1));
        assert_eq!(
            (in_words(&log.lost()), in_words(&log.refused())),
            ("1 worker_died".into(), "1 rate_jobs".into())
        );
        assert_eq!(log.texts((at(60), at(150))), 8);
        assert_eq!(log.latencies_ms((at(10), at(50))).len(), 1, "it began before and ended after");
        let latencies = log.latencies_ms((at(61), at(500)));
        assert!(latencies.len() == 1 && (latencies[0] - 50.0).abs() < 0.001, "{latencies:?}");
        assert_eq!((log.success_after(at(1)), log.success_after(at(101))), (Some(at(150)), None));
        assert_eq!(log.successes_after(start), 2);
    }
}
