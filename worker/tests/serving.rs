//! The worker's side of the link, driven in process: what it answers, and what ends it.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use ringfence_protocol::{
    Architecture, Data, EmbedInput, FromWorker, INLINE_INPUT_BYTES_MAX, ITEMS_MAX, Item, JobError, LinkError,
    LoadError, SLOTS_MAX, Start, ToWorker,
};
use ringfence_sandbox::SealedFile;
use ringfence_worker::jobs::SlotFault;
use ringfence_worker::serve::End;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{Package, START, Worker, embed, output, text, tokens};

fn ready() -> Worker {
    Worker::ready(&Package::tiny())
}

fn failure(heard: &[FromWorker], of: u32) -> Option<&JobError> {
    heard.iter().find_map(|message| match message {
        FromWorker::Failed { slot, error } if *slot == of => Some(error),
        _ => None,
    })
}

#[track_caller]
fn check_fails(items: Vec<Item>, truncate: bool, expected: &JobError) {
    let worker = ready();
    worker.run(3, items, truncate);
    let heard = worker.until_ends(1);
    assert_eq!(failure(&heard, 3), Some(expected));
    assert_eq!(heard.len(), 1, "no output before the failure");
    worker.run(3, vec![text("the next job works")], false);
    assert_eq!(output(&worker.until_ends(1), 3).len(), 1);
    worker.stop();
}

#[test]
fn a_job_is_answered_with_the_models_vectors_and_its_account() {
    let worker = ready();
    let texts = ["hello world", "a", "what people call a long day of work"];
    worker.run(0, texts.map(text).into(), false);
    let heard = worker.until_ends(1);
    let mut loaded = Package::tiny().load().unwrap();
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| tokens(&loaded, text)).collect();
    assert_eq!(output(&heard, 0), embed(&mut loaded, &ids));
    let total: usize = ids.iter().map(Vec::len).sum();
    match heard.last().unwrap() {
        FromWorker::Done { slot: 0, tokens, truncated: 0, compute_us, .. } => {
            assert_eq!(*tokens as usize, total);
            assert!(*compute_us > 0);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(&heard[0], FromWorker::Step { tokens, .. } if tokens[..] == [(0, total as u32)]));
    worker.stop();
}

#[test]
fn jobs_that_wait_together_share_steps_and_each_gets_its_own_vectors() {
    let worker = ready();
    let long = "what people call a long day of work ".repeat(5);
    // The first keeps the device busy while the others arrive.
    worker.run(7, vec![text(&long); 500], false);
    worker.run(1, vec![text("hello")], false);
    worker.run(2, vec![text("the water is hot"), text("a")], false);
    let heard = worker.until_ends(3);
    let shared = heard.iter().any(|m| matches!(m, FromWorker::Step { tokens, .. } if tokens.len() > 1));
    assert!(shared, "a step with items of several slots");
    let mut loaded = Package::tiny().load().unwrap();
    let ids = [tokens(&loaded, "the water is hot"), tokens(&loaded, "a")];
    let (found, alone) = (output(&heard, 2), embed(&mut loaded, &ids));
    let worst =
        found.iter().flatten().zip(alone.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(found.len() == 2 && worst < 1e-6, "off by {worst}");
    assert_eq!(output(&heard, 7).len(), 500);
    worker.stop();
}

#[test]
fn a_cancelled_job_ends_once_and_its_slot_is_free_again() {
    let worker = ready();
    worker.run(0, vec![text(&"many words ".repeat(20)); 2000], false);
    worker.say(ToWorker::Cancel { slot: 0 });
    let heard = worker.until_ends(1);
    assert_eq!(failure(&heard, 0), Some(&JobError::Cancelled));
    // It crossed the end on the way: nothing to answer.
    worker.say(ToWorker::Cancel { slot: 0 });
    worker.run(0, vec![text("again")], false);
    assert_eq!(output(&worker.until_ends(1), 0).len(), 1);
    worker.stop();
}

#[test]
fn a_cancel_at_any_moment_of_a_step_costs_its_neighbour_nothing() {
    let worker = ready();
    let mut loaded = Package::tiny().load().unwrap();
    let ids = tokens(&loaded, "the neighbour");
    let expected = embed(&mut loaded, &[ids]);
    for round in 0..200 {
        worker.run(0, vec![text(&"many words ".repeat(20)); 40], true);
        worker.run(1, vec![text("the neighbour")], false);
        std::thread::sleep(Duration::from_micros(20 * round));
        worker.say(ToWorker::Cancel { slot: 0 });
        let heard = worker.until_ends(2);
        let found = output(&heard, 1);
        let worst = found.iter().flatten().zip(&expected[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == 1 && worst < 1e-6, "round {round}");
        let cancelled = failure(&heard, 0) == Some(&JobError::Cancelled);
        assert!(cancelled || output(&heard, 0).len() == 40, "round {round}");
    }
    worker.stop();
}

#[test]
fn a_text_over_the_models_length_is_refused_with_both_numbers() {
    let items = vec![text("fine"), text(&"word ".repeat(100))];
    check_fails(items, false, &JobError::InputTooLong { item: 1, tokens: 102, max_tokens: 64 });
}

#[test]
fn with_leave_to_truncate_it_runs_and_is_counted() {
    let worker = ready();
    worker.run(0, vec![text("fine"), text(&"word ".repeat(10_000))], true);
    let heard = worker.until_ends(1);
    assert_eq!(output(&heard, 0).len(), 2);
    assert!(matches!(heard.last(), Some(FromWorker::Done { truncated: 1, .. })));
    worker.stop();
}

#[test]
fn empty_items_are_refused() {
    check_fails(vec![text("a"), text("")], false, &JobError::InputEmpty { item: 1 });
    check_fails(vec![Item::Tokens(vec![])], true, &JobError::InputEmpty { item: 0 });
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let error = JobError::TokenUnknown { item: 0, token: 246, vocabulary: 246 };
    check_fails(vec![Item::Tokens(vec![5, 246, 999])], false, &error);
}

#[test]
fn token_arrays_run_with_or_without_their_special_tokens() {
    let worker = ready();
    let with = tokens(&Package::tiny().load().unwrap(), "hello world");
    let without = with[1..with.len() - 1].to_vec();
    worker.run(0, vec![text("hello world"), Item::Tokens(with), Item::Tokens(without)], false);
    let vectors = output(&worker.until_ends(1), 0);
    assert!(vectors[0] == vectors[1] && vectors[1] == vectors[2]);
    worker.stop();
}

#[test]
fn a_job_that_does_not_fit_in_the_lease_fails_typed_and_the_next_one_works() {
    let worker = ready();
    // Room for some tens of tokens.
    worker.lease.store(60_000, Ordering::SeqCst);
    worker.run(0, vec![text("short"), text(&"word ".repeat(60))], false);
    let heard = worker.until_ends(1);
    assert!(matches!(failure(&heard, 0), Some(JobError::OutOfMemory { limit: 60_000, .. })), "{heard:?}");
    worker.run(0, vec![text("short")], false);
    assert_eq!(output(&worker.until_ends(1), 0).len(), 1);
    worker.stop();
}

#[test]
fn a_model_whose_output_is_not_finite_says_so() {
    let mut package = Package::tiny();
    let file = package.0.get_mut("model.safetensors").unwrap();
    let length = file.len();
    file[length - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let worker = Worker::ready(&package);
    worker.run(0, vec![text("a")], false);
    let heard = worker.until_ends(1);
    assert_eq!(failure(&heard, 0), Some(&JobError::NotFinite { item: 0 }));
    worker.stop();
}

fn send_input(worker: &Worker, input: &[u8], bytes: u64) {
    let file = SealedFile::from_bytes("input", input).unwrap();
    let message = ToWorker::Run { slot: 0, domain: 1, weight: 1, input: Data::Descriptor { bytes } };
    worker.link.send(&message, &[file.as_fd()]).unwrap();
}

#[test]
fn a_large_input_comes_as_a_sealed_descriptor() {
    let worker = ready();
    let input = EmbedInput { items: vec![text(&"word ".repeat(50)); 1000], truncate: false }.encode();
    assert!(input.len() > INLINE_INPUT_BYTES_MAX);
    send_input(&worker, &input, input.len() as u64);
    assert_eq!(output(&worker.until_ends(1), 0).len(), 1000);
    worker.stop();
}

#[test]
fn a_package_that_is_not_sealed_or_malformed_fails_the_load() {
    let worker = Worker::new();
    worker.hear();
    worker.say(ToWorker::Start(START));
    worker.hear();
    let unsealed = unsealed(b"{}");
    worker
        .link
        .send(&ToWorker::Load { files: vec!["config.json".to_owned()], blocks: vec![] }, &[unsealed.as_fd()])
        .unwrap();
    let error = LoadError::NotSealed { file: "config.json".to_owned() };
    assert_eq!(worker.hear(), FromWorker::LoadFailed { error: error.clone() });
    assert!(matches!(worker.thread.join().unwrap(), Err(End::Load(found)) if found == error));
}

fn unsealed(bytes: &[u8]) -> std::os::fd::OwnedFd {
    let file = rustix::fs::memfd_create("unsealed", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::io::write(&file, bytes).unwrap();
    file
}

/// Says something to a worker, loaded or just born, and expects that it ends with this.
#[track_caller]
fn check_ends(worker: Worker, say: impl FnOnce(&Worker), is_expected: impl FnOnce(&End) -> bool) {
    say(&worker);
    let end = worker.thread.join().unwrap().expect_err("it must not end well");
    assert!(is_expected(&end), "{end:?}");
}

fn born() -> Worker {
    let worker = Worker::new();
    worker.hear();
    worker
}

#[test]
fn illegal_messages_end_the_worker() {
    let illegal = |end: &End| matches!(end, End::Illegal(_));
    let slot = |fault: SlotFault| move |end: &End| matches!(end, End::Slot(found) if *found == fault);
    let too_many_threads = Start { threads: 10_000, ..START };
    let no_tokens = Start { max_tokens: 0, ..START };
    check_ends(born(), |w| w.say(ToWorker::Stop), illegal);
    check_ends(born(), |w| w.say(ToWorker::Cancel { slot: 0 }), illegal);
    check_ends(born(), |w| w.say(ToWorker::Load { files: vec![], blocks: vec![] }), illegal);
    check_ends(born(), |w| w.say(ToWorker::Start(too_many_threads)), illegal);
    check_ends(born(), |w| w.say(ToWorker::Start(no_tokens)), illegal);
    check_ends(ready(), |w| w.say(ToWorker::Start(START)), illegal);
    check_ends(ready(), |w| w.say(ToWorker::Load { files: vec![], blocks: vec![] }), illegal);
    check_ends(ready(), |w| w.run_inline(0, vec![]), illegal);
    check_ends(ready(), |w| w.run_inline(0, vec![text(""); ITEMS_MAX + 1]), illegal);
    check_ends(ready(), |w| w.run_inline(0, vec![text(&"a".repeat(INLINE_INPUT_BYTES_MAX + 1))]), illegal);
    check_ends(ready(), |w| w.run(SLOTS_MAX, vec![text("a")], false), slot(SlotFault::Beyond));
    check_ends(ready(), |w| w.say(ToWorker::Cancel { slot: SLOTS_MAX }), slot(SlotFault::Beyond));
    check_ends(ready(), |w| w.say(ToWorker::Cancel { slot: 5 }), slot(SlotFault::Never));
    let two_for_one_slot = |w: &Worker| {
        w.run(0, vec![text(&"many words ".repeat(20)); 100], false);
        w.run(0, vec![text("a")], false);
    };
    check_ends(ready(), two_for_one_slot, slot(SlotFault::Taken));
}

#[test]
fn descriptors_that_do_not_belong_end_the_worker() {
    let illegal = |end: &End| matches!(end, End::Illegal(_));
    let with_file = |message: ToWorker| {
        move |w: &Worker| {
            let file = SealedFile::from_bytes("input", b"x").unwrap();
            w.link.send(&message, &[file.as_fd()]).unwrap();
        }
    };
    check_ends(ready(), with_file(ToWorker::Stop), illegal);
    check_ends(ready(), with_file(ToWorker::Cancel { slot: 0 }), illegal);
    check_ends(born(), with_file(ToWorker::Start(START)), illegal);
    let input = Data::Descriptor { bytes: 1 };
    check_ends(ready(), |w| w.say(ToWorker::Run { slot: 0, domain: 1, weight: 1, input }), illegal);
    check_ends(ready(), |w| send_input(w, b"no encoding", 11), illegal);
    let input = EmbedInput { items: vec![text("a")], truncate: false }.encode();
    check_ends(ready(), |w| send_input(w, &input, input.len() as u64 - 1), illegal);
    check_ends(ready(), |w| send_input(w, &input, u64::MAX), illegal);
    let unsealed = unsealed(&input);
    let message = ToWorker::Run {
        slot: 0,
        domain: 1,
        weight: 1,
        input: Data::Descriptor { bytes: input.len() as u64 },
    };
    check_ends(
        ready(),
        |w| w.link.send(&message, &[unsealed.as_fd()]).unwrap(),
        |end| matches!(end, End::Input(_)),
    );
}

#[test]
fn bytes_that_are_no_message_end_the_worker() {
    let malformed = |end: &End| matches!(end, End::Link(LinkError::Malformed(_)));
    let raw = |bytes: &'static [u8]| {
        move |w: &Worker| {
            rustix::io::write(&w.link, bytes).unwrap();
        }
    };
    check_ends(born(), raw(&[250, 1, 2, 3]), malformed);
    check_ends(ready(), raw(&[7, 0]), malformed);
    check_ends(ready(), raw(&[2]), malformed);
}

#[test]
fn a_closed_link_ends_the_worker() {
    let Worker { link, thread, .. } = ready();
    drop(link);
    assert!(matches!(thread.join().unwrap(), Err(End::Link(LinkError::Closed))));
}

#[test]
fn hello_states_the_protocols_digest() {
    let worker = Worker::new();
    assert_eq!(worker.hear(), FromWorker::Hello { digest: ringfence_protocol::DIGEST.to_owned() });
    drop(worker.link);
    assert!(worker.thread.join().unwrap().is_err());
    assert_eq!(START.architecture, Architecture::Bert);
}
