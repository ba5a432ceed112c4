use super::*;
use crate::replay::trace::TracedModel;
use std::collections::BTreeMap;

const END: &str = "{\"t\":60000000,\"stop\":\"time\"}\n";

fn header(quotas: &str, ready: u32) -> String {
    let model = TracedModel {
        lease_bytes: 1 << 20,
        default_lease_bytes: 1 << 20,
        package_bytes: 1 << 20,
        threads: 2,
        shares_steps: false,
        load_us: 100_000,
        token_ns: 10_000,
        ready,
    };
    let header = Header {
        ringfence_trace: TRACE_VERSION,
        models: BTreeMap::from([("minilm".to_owned(), model)]),
        machine: TracedMachine { memory_bytes: 8 << 30, cores: 2 },
        quotas: quotas.to_owned(),
    };
    serde_json::to_string(&header).unwrap() + "\n"
}

fn line(t: u64, what: What) -> String {
    serde_json::to_string(&Line { t, what }).unwrap() + "\n"
}

/// A job with a bound of 1,000 tokens.
fn submit(t: u64, job: u64, client: &str) -> String {
    let (client, model) = (client.to_owned(), "minilm".to_owned());
    let what = Submitted {
        job,
        client,
        model,
        items: 1,
        tokens: 1_000,
        tokens_bound: 512,
        audio_ms: 0,
        deadline_us: None,
    };
    line(t, What::Submit(what))
}

/// A job that took 5 ms for 500 tokens.
fn end(t: u64, job: u64, code: &str) -> String {
    let code = code.to_owned();
    line(t, What::End(Ended { job, code, device_us: 5_000, tokens: 500, waited_us: Some(1) }))
}

/// Two clients that ask for 8 s of device time each, of which 4 s are recorded.
fn contended(quotas: &str) -> Trace {
    let mut text = header(quotas, 1);
    for job in 0..1_600 {
        text += &submit(job, 2 * job, "notes");
        text += &submit(job, 2 * job + 1, "search");
    }
    for job in 0..3_200 {
        text += &end(4_000_000, job, "done");
    }
    Trace::parse(&(text + "{\"t\":4000000,\"stop\":\"time\"}\n")).unwrap()
}

const WIDE: &str = "[queues]\nper_client = 10000\n[models.default]\nqueue = 10000\n";

#[test]
fn what_is_no_trace_is_refused_with_its_line() {
    let good = header("", 0) + &submit(5, 1, "notes") + &end(9, 1, "done");
    let check = |text: &str, expected: &str| {
        let error = Trace::parse(text).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} has no {expected:?}");
    };
    assert_eq!(Trace::parse(&(good.clone() + END)).unwrap().jobs(), 1);
    check("", "line 1: the end is missing");
    check("{}", "line 1: missing field `ringfence_trace`");
    check("{\"ringfence_trace\":2}", "line 1: this is a trace of version 2");
    check("{\"ringfence_trace\":1}", "line 1: missing field");
    check(&good, "line 4: the end is missing");
    check(&format!("{good}{{\"t\":10,\"stop\""), "line 4: EOF");
    check(&format!("{good}{{\"t\":10,\"begin\":{{}}}}\n"), "line 4: ");
    check(&format!("{good}{{\"error\":\"too slow\"}}\n"), "line 4: the recording failed: too slow");
    check(&format!("{good}{}", submit(4, 2, "notes")), "line 4: its time is before");
    check(&format!("{good}{}", submit(9, 1, "notes")), "line 4: this job came or ended before");
    check(&format!("{good}{}", end(9, 1, "done")), "line 4: this job came or ended before");
    check(&format!("{good}{}", end(9, 7, "done")), "line 4: no line above says");
    check(&format!("{good}{}", line(9, What::Cancel(cancelled(7)))), "line 4: no line above says");
    check(&format!("{good}{}", submit(u64::MAX, 2, "notes")), "line 4: its time or one of its numbers");
    check(&format!("{good}{END}{END}"), "line 5: there is a line after the last one");
    let many = header("", 0) + &"{\"t\":1,\"cancel\":{\"job\":1}}\n".repeat(TRACE_LINES_MAX);
    let many = many.replacen("{\"t\":1,\"cancel\":{\"job\":1}}", submit(1, 1, "a").trim_end(), 1);
    check(&many, &format!("line {}: a trace has at most", TRACE_LINES_MAX + 1));
}

#[test]
fn a_line_is_written_as_documented() {
    assert_eq!(
        submit(5, 1, "notes"),
        "{\"t\":5,\"submit\":{\"job\":1,\"client\":\"notes\",\"model\":\"minilm\",\"items\":1,\"tokens\":1000,\
         \"tokens_bound\":512,\"deadline_us\":null}}\n"
    );
    assert_eq!(line(7, What::Stop(Stop::QuotasChanged)), "{\"t\":7,\"stop\":\"quotas_changed\"}\n");
}

#[test]
fn a_client_with_three_times_the_weight_gets_three_times_as_much() {
    let trace = contended(WIDE);
    let new = Quotas::parse(&format!("{WIDE}[clients.notes]\nweight = 3\nqueue = 10000\n")).unwrap();
    let compared = compare(&trace, &new).unwrap();
    let share = |report: &Report, client: &str| report.clients[client].share;
    assert!((share(&compared.recorded, "notes") - 0.5).abs() < 0.01, "{compared:?}");
    assert!((share(&compared.new, "notes") - 0.75).abs() < 0.01, "{compared:?}");
    for report in [&compared.recorded, &compared.new] {
        for client in report.clients.values() {
            assert_eq!((client.submitted, client.done, client.device_us), (1_600, 1_600, 8_000_000));
        }
    }
    assert!(compared.new.clients["notes"].wait.max_us < compared.recorded.clients["notes"].wait.max_us);
    assert_eq!((compared.agreement.jobs, compared.agreement.same), (3_200, 3_200));
}

#[test]
fn the_same_trace_and_quotas_give_the_same_report() {
    let trace = contended(WIDE);
    let quotas = Quotas::parse("[clients.notes]\nclass = \"batch\"\ndevice_ms_per_minute = 600\n").unwrap();
    assert_eq!(replay(&trace, &quotas), replay(&trace, &quotas));
}

#[test]
fn a_rate_would_have_refused() {
    let mut text = header("", 0);
    for job in 0..20 {
        text += &submit(job * 100_000, job, "notes");
        text += &end(job * 100_000 + 5_000, job, "done");
    }
    let trace = Trace::parse(&(text + END)).unwrap();
    let new = Quotas::parse("[clients.notes]\njobs_per_minute = 60\njobs_burst = 5\n").unwrap();
    let compared = compare(&trace, &new).unwrap();
    assert_eq!(compared.recorded.clients["notes"].done, 20);
    // Five at once, and one more in the second that the others take.
    let notes = &compared.new.clients["notes"];
    assert_eq!((notes.done, &notes.refused), (6, &BTreeMap::from([("rate_jobs", 14)])));
    assert_eq!((compared.agreement.jobs, compared.agreement.same), (20, 20));
}

fn cancelled(job: u64) -> Cancelled {
    Cancelled { job, grant_ended: false }
}

#[test]
fn a_line_says_that_a_grant_ended_only_where_it_did() {
    let text = |grant_ended| line(6, What::Cancel(Cancelled { job: 2, grant_ended }));
    assert_eq!(text(false).trim(), "{\"t\":6,\"cancel\":{\"job\":2}}");
    assert_eq!(text(true).trim(), "{\"t\":6,\"cancel\":{\"job\":2,\"grant_ended\":true}}");
}

#[test]
fn what_ends_otherwise_than_with_an_answer_is_replayed() {
    let deadline = submit(5, 4, "late").replace("null", "1000");
    let text = header("", 0)
        + &submit(1, 1, "a")
        + &submit(2, 2, "a")
        + &submit(3, 3, "a")
        + &deadline
        + &submit(5, 5, "a")
        + &line(6, What::Cancel(cancelled(2)))
        + &end(6, 2, "cancelled")
        + &line(7, What::Cancel(Cancelled { job: 5, grant_ended: true }))
        + &end(7, 5, "cancelled")
        + &end(9, 3, "in_worker")
        + &end(1_005, 4, "deadline_passed");
    let quotas = Quotas::parse("").unwrap();
    let trace = Trace::parse(&(text.clone() + END)).unwrap();
    let report = replay(&trace, &quotas).unwrap();
    // The job that nobody saw the end of is done at the end. How long a load takes is known: it comes too late.
    let expected = ["done", "cancelled", "in_worker", "deadline_unmeetable", "cancelled"].map(Some);
    assert_eq!(report.codes, expected);
    assert_eq!(report.clients["a"].failed, BTreeMap::from([("cancelled", 2), ("in_worker", 1)]));
    assert!(report.clients["a"].wait.max_us >= 99_000, "{report:?}");
    // A client that may not use the model is told so.
    let closed = Quotas::parse("[clients.a]\nmodels = []\n").unwrap();
    let report = replay(&trace, &closed).unwrap();
    assert_eq!(report.clients["a"].refused, BTreeMap::from([("model_unknown", 4)]));
    // Quotas that leave the machine of the trace nothing.
    let nothing = Quotas::parse("[devices.cpu]\nreserve_mib = 16777216\n").unwrap();
    assert!(matches!(replay(&trace, &nothing), Err(ReplayError::Config(_))));
    let wrong = Trace::parse(&(header("x", 0) + END)).unwrap();
    assert!(matches!(compare(&wrong, &quotas), Err(ReplayError::Recorded(_))));
}

#[test]
fn waits_are_ranks() {
    let check = |waits: Vec<u64>, expected: (u64, u64, u64)| {
        let Waits { p50_us, p95_us, max_us } = Waits::of(waits);
        assert_eq!((p50_us, p95_us, max_us), expected);
    };
    check(vec![], (0, 0, 0));
    check(vec![7], (7, 7, 7));
    check((1..=100).rev().collect(), (50, 95, 100));
}
