//! Jobs whose text is a granted file: read over its own socket, beside other jobs, and never waited for.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use ringfence_protocol::{
    ChunkBytes, Data, FILE_STEP_BYTES_MAX, FILE_STEPS_MAX, FileRefusal, FileReply, FileRequest, FileSideLink,
    FromWorker, INPUT_BYTES_MAX, JobError, ToWorker, connected_pair,
};
use std::os::fd::AsFd;
use support::{Package, Worker, output, text};

/// Gives a worker a job with a file, whose service is at the end that is returned.
fn run(worker: &Worker, slot: u32, truncate: bool) -> FileSideLink {
    let (theirs, ours) = connected_pair().unwrap();
    rustix::io::ioctl_fionbio(&theirs, true).unwrap();
    let input = Data::File { truncate };
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
        if link.send(&FileReply::Bytes { offset, data: ChunkBytes(bytes[from..to].to_vec()) }, &[]).is_err() {
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
    link.send(&FileReply::Bytes { offset: 9, data: ChunkBytes(vec![b'a'; 3]) }, &[]).unwrap();
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
