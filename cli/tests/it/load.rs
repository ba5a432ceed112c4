//! The load generator against a server whose delay is known.

use crate::server::{Reply, Server};
use ringfence_cli::bench::load::{Outcome, Pace, Plan, Progress, Until, WAITING_MAX, run};
use ringfence_cli::bench::words;
use ringfence_cli::error::CliError;
use ringfence_cli::http::{Address, runtime};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const DELAY: Duration = Duration::from_millis(20);

fn plan(path: &Path, pace: Pace, connections: usize, until: Until) -> Plan {
    let address = Address::Unix(path.to_owned());
    Plan { address, path: "/v1/embeddings", bodies: words::bodies("m", 2, 8), pace, connections, until }
}

fn against(reply: Reply, pace: Pace, connections: usize, until: Until) -> (Server, Outcome) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let server = Server::on_socket(&path, reply);
    let progress = Arc::new(Progress::default());
    let plan = plan(&path, pace, connections, until);
    let outcome = runtime().unwrap().block_on(run(plan, Arc::clone(&progress))).unwrap();
    let failed: u64 = outcome.tally.errors.values().sum();
    assert_eq!(progress.ended(), outcome.tally.answered() + failed);
    assert_eq!(server.asked().len() as u64, progress.ended());
    (server, outcome)
}

fn stamped() -> Reply {
    Reply::json(200, &json!({}))
        .header("server-timing", "total;dur=5.250, queue;dur=0.040, worker;dur=5.000, compute;dur=4.900")
}

#[test]
fn a_closed_loop_sends_as_many_requests_as_it_was_told_on_its_connections() {
    let (server, outcome) = against(stamped().after(DELAY), Pace::Closed, 3, Until::Requests(10));
    assert_eq!((outcome.tally.answered(), server.connections()), (10, 3));
    assert!(outcome.tally.latency.min() >= 20_000 * 999 / 1_000, "{} us", outcome.tally.latency.min());
    // Three at a time: at least four rounds.
    assert!(outcome.elapsed >= 4 * DELAY);
    assert!(outcome.schedule.is_none());
}

#[test]
fn the_overhead_is_what_the_servers_stamps_say() {
    let (_server, outcome) = against(stamped(), Pace::Closed, 1, Until::Requests(5));
    assert_eq!((outcome.tally.beside_worker.len(), outcome.tally.beside_worker.max()), (5, 250));
    assert_eq!(outcome.tally.beside_compute.max(), 350);
}

#[test]
fn a_closed_loop_with_a_time_ends() {
    let until = Until::Elapsed(Duration::from_millis(100));
    let (_server, outcome) = against(stamped().after(DELAY), Pace::Closed, 2, until);
    assert!(outcome.tally.answered() >= 2);
    assert!(outcome.elapsed >= Duration::from_millis(100));
}

#[test]
fn an_open_loop_counts_the_time_that_a_request_waited_for_a_connection() {
    // Ten requests are due at (nearly) once on one connection: the last waits for nine others.
    let (_server, outcome) =
        against(stamped().after(DELAY), Pace::Open { per_second: 10_000.0 }, 1, Until::Requests(10));
    assert_eq!(outcome.tally.answered(), 10);
    let due_within = Duration::from_millis(1);
    assert!(outcome.tally.latency.max() >= (10 * DELAY - due_within).as_micros() as u64);
    assert!(outcome.tally.latency.value_at_quantile(0.5) >= (5 * DELAY - due_within).as_micros() as u64);
    assert_eq!(outcome.schedule.unwrap().overflow, 0);
}

#[test]
fn an_open_loop_does_not_hold_more_than_its_bound_and_counts_the_rest() {
    let due = WAITING_MAX as u64 + 500;
    let delay = Duration::from_millis(1);
    let (_server, outcome) =
        against(stamped().after(delay), Pace::Open { per_second: 100_000.0 }, 1, Until::Requests(due));
    let schedule = outcome.schedule.unwrap();
    assert!(schedule.overflow > 0);
    assert_eq!(outcome.tally.answered() + schedule.overflow, due);
    assert_eq!(schedule.lag.len(), due);
}

#[test]
fn refusals_are_counted_by_code_and_have_no_latency() {
    let reply = Reply::json(429, &json!({"error": {"code": "queue_full", "message": "full"}}));
    let (_server, outcome) = against(reply, Pace::Closed, 2, Until::Requests(7));
    assert_eq!((outcome.tally.errors["queue_full"], outcome.tally.answered()), (7, 0));
}

#[test]
fn a_server_that_goes_away_ends_the_run() {
    let check = |pace| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let server = Server::on_socket(&path, stamped().after(DELAY));
        let stop = std::thread::spawn(move || {
            while server.asked().len() < 3 {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let plan = plan(&path, pace, 2, Until::Elapsed(Duration::from_secs(60)));
        let result = runtime().unwrap().block_on(run(plan, Arc::default()));
        assert!(matches!(result, Err(CliError::Unreachable { .. })), "{result:?}");
        stop.join().unwrap();
    };
    check(Pace::Closed);
    check(Pace::Open { per_second: 100.0 });
}
