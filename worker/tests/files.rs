//! Jobs whose text is a granted file: read over its own socket, beside other jobs, and never waited for.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use ringfence_protocol::{
    Data, FILE_STEP_BYTES_MAX, FILE_STEPS_MAX, FileRefusal, FileReply, FileRequest, FileSideLink, FromWorker,
    INPUT_BYTES_MAX, ITEMS_MAX, JobError, Passage, Split, ToWorker, connected_pair,
};
use ringfence_sandbox::SealedFile;
use std::os::fd::AsFd;
use support::{Package, Worker, output, text};

/// Gives a worker a job with a file, whose service is at the end that is returned.
fn run(worker: &Worker, slot: u32, truncate: bool) -> FileSideLink {
    run_split(worker, slot, Split::Whole { truncate })
}

fn run_split(worker: &Worker, slot: u32, split: Split) -> FileSideLink {
    let (theirs, ours) = connected_pair().unwrap();
    rustix::io::ioctl_fionbio(&theirs, true).unwrap();
    let input = Data::File { split };
    worker.link.send(&ToWorker::Run { slot, domain: 1, weight: 1, input }, &[theirs.as_fd()]).unwrap();
    FileSideLink::new(ours)
}

/// Answers as the file's service does, until the other end is closed; how many requests came.
fn serve(link: &FileSideLink, bytes: &[u8]) -> usize {
    let mut requests = 0;
    while let Ok(received) = link.receive() {
        let FileRequest::Read { offset, length } = received.message else { panic!("{:?}", received.message) };
        let from = (offset as usize).min(bytes.len());
        let to = (from + length as usize).min(bytes.len());
        requests += 1;
        if link
            .send_carrying(&FileReply::Bytes { offset, length: (to - from) as u32 }, &bytes[from..to])
            .is_err()
        {
            break;
        }
    }
    requests
}

fn failed(worker: &Worker) -> JobError {
    match worker.until_ends(1).pop() {
        Some(FromWorker::Failed { error, .. }) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_is_its_text_at_every_length() {
    let worker = Worker::ready(&Package::tiny());
    let step = FILE_STEP_BYTES_MAX;
    for length in [1, 30, step - 1, step, step + 1, FILE_STEPS_MAX * step, (FILE_STEPS_MAX + 3) * step + 7] {
        let words = "the cat sat on the mat ".repeat(length / 23 + 1);
        let words = &words[..length];
        worker.run(0, vec![text(words)], true);
        let expected = output(&worker.until_ends(1), 0);
        let link = run(&worker, 1, true);
        serve(&link, words.as_bytes());
        assert_eq!(output(&worker.until_ends(1), 1), expected, "{length}");
    }
    worker.stop();
}

/// The passages of a text as a worker says them, with their vectors.
fn passages(worker: &Worker, bytes: &[u8], tokens_max: u32) -> (Vec<Passage>, Vec<Vec<f32>>) {
    let link = run_split(worker, 0, Split::Passages { tokens_max });
    serve(&link, bytes);
    let heard = worker.until_ends(1);
    assert!(matches!(heard.last(), Some(FromWorker::Done { slot: 0, .. })), "{heard:?}");
    let said = heard.iter().position(|message| matches!(message, FromWorker::Passages { .. })).unwrap();
    assert!(heard[..said].iter().all(|message| !matches!(message, FromWorker::Chunk { .. })));
    let FromWorker::Passages { passages, .. } = &heard[said] else { unreachable!("it was found") };
    (passages.clone(), output(&heard, 0))
}

#[test]
fn a_file_that_is_split_is_its_passages_each_as_if_it_came_alone() {
    let worker = Worker::ready(&Package::tiny());
    let paragraph = "the cat sat on the mat. the dog sat\non the cat.\n\n";
    let long = paragraph.repeat(400);
    for (text_of, tokens_max) in [
        ("the cat sat", 4),
        ("\u{feff}the cat sat on the mat", 4),
        ("  \n\n the cat \n\n\n sat  ", 1),
        (paragraph, 8),
        (long.as_str(), 14),
        (long.as_str(), 1_000_000),
    ] {
        let (passages, vectors) = passages(&worker, text_of.as_bytes(), tokens_max);
        assert_eq!(vectors.len(), passages.len());
        let mut at = 0;
        for (passage, vector) in passages.iter().zip(&vectors) {
            let range = passage.start as usize..passage.end as usize;
            assert!(text_of[at..range.start].trim_matches(['\u{feff}', ' ', '\n']).is_empty(), "{range:?}");
            at = range.end;
            worker.run(1, vec![text(&text_of[range])], false);
            assert_eq!(&output(&worker.until_ends(1), 1)[0], vector);
        }
        assert!(text_of[at..].trim().is_empty());
    }
    worker.stop();
}

#[test]
fn passages_end_where_a_text_does_or_a_paragraph_a_line_or_a_sentence() {
    let worker = Worker::ready(&Package::tiny());
    let split = |text: &str, tokens_max| {
        let (passages, _) = passages(&worker, text.as_bytes(), tokens_max);
        passages.iter().map(|p| text[p.start as usize..p.end as usize].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(split("we see two\n\nin the water", 4), ["we see two", "in the water"]);
    assert_eq!(split("we\nsee two\nin the water", 4), ["we\nsee two", "in the water"]);
    assert_eq!(split("we see. two in the water", 4), ["we see.", "two in the water"]);
    assert_eq!(split("we see two in the water", 4), ["we see two in", "the water"]);
    assert_eq!(split("we\n\nsee two in the water", 4), ["we\n\nsee two in", "the water"]);
    // `cat` is three tokens.
    assert_eq!(split("we see two cat", 4), ["we see two", "cat"]);
    assert_eq!(split("we cat the cat", 4), ["we cat", "the cat"]);
    assert_eq!(split("cat", 2), ["ca", "t"]);
    assert_eq!(split(&format!("{} the cat", "x".repeat(300)), 4).last().unwrap(), "the cat");
    worker.stop();
}

#[test]
fn a_file_without_text_has_no_passages_and_one_with_too_many_fails() {
    let worker = Worker::ready(&Package::tiny());
    let dropped = "\u{200b}".repeat(100_000);
    for nothing in [&b""[..], b" \n\t ", b"\xef\xbb\xbf", dropped.as_bytes()] {
        assert_eq!(passages(&worker, nothing, 4), (Vec::new(), Vec::new()));
    }
    let link = run_split(&worker, 0, Split::Passages { tokens_max: 1 });
    serve(&link, "we ".repeat(ITEMS_MAX + 1).as_bytes());
    assert_eq!(failed(&worker), JobError::PassagesTooMany { limit: ITEMS_MAX as u32 });

    // A sealed copy is split as well.
    let copy = SealedFile::from_bytes("copy", b"we see two.").unwrap();
    let input = Data::Text { bytes: 11, split: Split::Passages { tokens_max: 2 } };
    worker.link.send(&ToWorker::Run { slot: 0, domain: 1, weight: 1, input }, &[copy.as_fd()]).unwrap();
    assert_eq!(output(&worker.until_ends(1), 0).len(), 2);
    worker.stop();
}

#[test]
fn others_run_while_a_file_gives_nothing_and_a_cancel_ends_the_wait() {
    let worker = Worker::ready(&Package::tiny());
    let silent = run(&worker, 1, false);
    for _ in 0..3 {
        worker.run(0, vec![text("the cat")], false);
        assert_eq!(output(&worker.until_ends(1), 0).len(), 1);
    }
    worker.say(ToWorker::Cancel { slot: 1 });
    assert_eq!(failed(&worker), JobError::Cancelled);
    // It is forgotten: its socket is closed behind the requests that it had sent.
    let requests = serve(&silent, b"");
    assert!((1..=FILE_STEPS_MAX).contains(&requests), "{requests}");
    worker.stop();
}

#[test]
fn what_can_not_be_read_or_is_no_text_fails_alone() {
    let worker = Worker::ready(&Package::tiny());
    let link = run(&worker, 0, false);
    link.receive().unwrap();
    link.send(&FileReply::Refused(FileRefusal::Expired), &[]).unwrap();
    drop(link);
    assert_eq!(failed(&worker), JobError::InputRefused { refusal: FileRefusal::Expired });

    drop(run(&worker, 0, false));
    assert_eq!(failed(&worker), JobError::InputUnavailable);

    let link = run(&worker, 0, false);
    serve(&link, b"ab\xff");
    assert_eq!(failed(&worker), JobError::InputNotText { byte: 2 });

    let link = run(&worker, 0, false);
    serve(&link, b"");
    assert_eq!(failed(&worker), JobError::InputEmpty { item: 0 });

    let link = run(&worker, 0, false);
    serve(&link, &vec![b'a'; INPUT_BYTES_MAX + 1]);
    assert_eq!(failed(&worker), JobError::InputTooLarge { limit: INPUT_BYTES_MAX as u64 });

    // Bytes of another place than was asked for.
    let link = run(&worker, 0, false);
    link.receive().unwrap();
    link.send_carrying(&FileReply::Bytes { offset: 9, length: 3 }, b"aaa").unwrap();
    assert_eq!(failed(&worker), JobError::InputUnavailable);

    worker.run(0, vec![text("the cat")], false);
    assert_eq!(output(&worker.until_ends(1), 0).len(), 1);
    worker.stop();
}

#[test]
fn a_file_does_not_come_for_a_slot_that_is_taken() {
    let worker = Worker::ready(&Package::tiny());
    let _first = run(&worker, 0, false);
    let _second = run(&worker, 0, false);
    assert!(worker.thread.join().unwrap().is_err());
}
