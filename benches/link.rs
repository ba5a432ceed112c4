//! Round trips over the link: a message of a kilobyte there and back, between two threads.

use criterion::{Criterion, criterion_group, criterion_main};
use ringfence_protocol::{
    ChunkBytes, Data, EmbedInput, FromWorker, Item, ToWorker, WorkerLink, WorkerSideLink, connected_pair,
};

fn round_trip(criterion: &mut Criterion) {
    let (server, worker) = connected_pair().expect("a pair of sockets");
    let (server, worker) = (WorkerLink::new(server), WorkerSideLink::new(worker));
    let echo = std::thread::spawn(move || {
        while worker.receive().is_ok() {
            let data = ChunkBytes(vec![7; 1024]);
            if worker.send(&FromWorker::Chunk { slot: 0, sequence: 0, data }, &[]).is_err() {
                break;
            }
        }
    });
    let input = EmbedInput { items: vec![Item::Text("x".repeat(1024))], truncate: false };
    let message = ToWorker::Run { slot: 0, domain: 1, weight: 1, input: Data::Inline(input) };
    criterion.bench_function("link round trip, 1 KiB each way", |bencher| {
        bencher.iter(|| {
            server.send(&message, &[]).expect("the other thread reads");
            server.receive().expect("the other thread answers")
        });
    });
    drop(server);
    echo.join().expect("the other thread ends with the link");
}

fn largest(criterion: &mut Criterion) {
    let (server, worker) = connected_pair().expect("a pair of sockets");
    let (server, worker) = (WorkerLink::new(server), WorkerSideLink::new(worker));
    let data = ChunkBytes(vec![7; ringfence_protocol::CHUNK_BYTES_MAX]);
    let message = FromWorker::Chunk { slot: 0, sequence: 0, data };
    criterion.bench_function("link, one way, the largest chunk", |bencher| {
        bencher.iter(|| {
            worker.send(&message, &[]).expect("one message always fits");
            server.receive().expect("it was sent")
        });
    });
}

criterion_group!(benches, round_trip, largest);
criterion_main!(benches);
