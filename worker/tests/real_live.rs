//! Live sound by real weights: tiny.en and Silero's detector hear clips frame by frame, as a microphone brings them.
//! `RINGFENCE_SPEECH` names the folder with the sources (see real_whisper.rs); `make test` fills it.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![expect(clippy::disallowed_methods, reason = "sound comes by the clock")]

#[path = "support/live.rs"]
mod live;
mod support;
#[path = "support/words.rs"]
mod words;

use live::{Audio, plain, silence, slot_of};
use ringfence_protocol::{
    FRAME_SAMPLES, FromWorker, JobError, Listened, Segment, SourceForm, StreamFault, StreamPublic, ToWorker,
};
use ringfence_sandbox::SealedFile;
use ringfence_worker::convert::output::InMemory;
use ringfence_worker::convert::{Work, convert};
use ringfence_worker::memory::Lease;
use ringfence_worker::package::{FileBytes, Files};
use ringfence_worker::sound::Sound;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Package, START, Worker};
use words::{distance, words};

fn folder() -> PathBuf {
    PathBuf::from(
        std::env::var_os("RINGFENCE_SPEECH").expect("RINGFENCE_SPEECH must be set; `make test` does"),
    )
}

fn imported(form: SourceForm, sources: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    let read = |(name, file): &(&str, &str)| {
        let bytes = std::fs::read(folder().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        ((*name).to_owned(), Arc::new(bytes) as FileBytes)
    };
    let files: Files = sources.iter().map(read).collect();
    let mut output = InMemory::new(&files);
    convert(form, &mut Work { files: &files, output: &mut output, memory: &Lease }).unwrap();
    output.files
}

/// With tiny.en and the detector.
fn ready() -> Worker {
    let model = imported(
        SourceForm::WhisperPt,
        &[("model.pt", "tiny.en.pt"), ("vocabulary.tiktoken", "gpt2.tiktoken")],
    );
    let worker = Worker::new();
    assert!(matches!(worker.hear(), FromWorker::Hello { .. }));
    worker.say(ToWorker::Start(live::start(&START)));
    assert!(matches!(worker.hear(), FromWorker::Sealed { .. }));
    worker.load(&Package(model));
    assert!(matches!(worker.hear(), FromWorker::Ready { .. }));
    let detector = imported(SourceForm::SileroOnnx, &[("model.onnx", "silero.onnx")]);
    let sealed: Vec<SealedFile> =
        detector.values().map(|bytes| SealedFile::from_bytes("test", bytes).unwrap()).collect();
    let descriptors: Vec<_> = sealed.iter().map(AsFd::as_fd).collect();
    let files = detector.keys().cloned().collect();
    worker.link.send(&ToWorker::LoadDetector { files }, &descriptors).unwrap();
    worker
}

fn clip(name: &str) -> Vec<i16> {
    let bytes = std::fs::read(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut sound = Sound::open(Arc::new(bytes) as FileBytes).unwrap();
    let mut samples = Vec::new();
    while sound.read(&mut samples).unwrap() {}
    samples.iter().map(|sample| (sample * 32768.0) as i16).collect()
}

const KENNEDY: &str = "And so my fellow Americans ask not what your country can do for you ask what you can do for your country";
const AUSTEN: &str = "librivox/sense_and_sensibility_01_austen_64kb-0870.wav";

/// What is said in a clip.
fn said_in(name: &str) -> Vec<String> {
    let transcription = std::fs::read_to_string(folder().join("librivox/transcription")).unwrap();
    let stem = name.trim_start_matches("librivox/").trim_end_matches(".wav");
    let line = transcription.lines().find(|line| line.ends_with(&format!(" ({stem})"))).unwrap();
    let said = line.rsplit_once(" (").unwrap().0;
    words(said.trim_start_matches("<s>").trim_end_matches("</s>"))
}

/// What was said of one stream, and when it came.
#[derive(Default)]
struct Heard {
    key: Option<StreamPublic>,
    segments: Vec<(Instant, Segment)>,
    partials: Vec<String>,
    last: Listened,
    busy_us: u64,
    end: Option<Result<u64, JobError>>,
}

impl Heard {
    fn text(&self) -> String {
        self.segments.iter().map(|(_, segment)| segment.text.as_str()).collect()
    }

    /// From the end of each phrase until its text was there, where the stream began then.
    fn latencies(&self, begin: Instant) -> Vec<Duration> {
        let of = |(at, segment): &(Instant, Segment)| {
            at.saturating_duration_since(begin + Duration::from_millis(segment.end_ms))
        };
        self.segments.iter().map(of).collect()
    }
}

type Jobs = BTreeMap<u32, Heard>;

/// Takes the next message.
fn hear(worker: &Worker, jobs: &mut Jobs) {
    let message = worker.hear();
    if let FromWorker::Step { busy_us, tokens } = &message {
        jobs.entry(tokens[0].0).or_default().busy_us += busy_us;
    }
    let Some(slot) = slot_of(&message) else { return };
    let job = jobs.entry(slot).or_default();
    match message {
        FromWorker::Listens { key, .. } => job.key = Some(key),
        FromWorker::Segment { sequence, segment, .. } => {
            assert_eq!(sequence as usize, job.segments.len());
            assert!(segment.is_legal(job.last.stream_ms()), "{segment:?}");
            job.segments.push((Instant::now(), segment));
        }
        FromWorker::Partial { text, .. } => job.partials.push(text),
        FromWorker::Listened { listened, .. } => job.last = listened,
        FromWorker::Done { compute_us, .. } => job.end = Some(Ok(compute_us)),
        FromWorker::Failed { error, .. } => job.end = Some(Err(error)),
        other => panic!("{other:?}"),
    }
}

fn listen(worker: &Worker, jobs: &mut Jobs, slot: u32) -> Audio {
    let mut audio = Audio::listen(&worker.link, slot, 1 + u64::from(slot), plain());
    while jobs.get(&slot).and_then(|job| job.key).is_none() {
        hear(worker, jobs);
    }
    audio.open(jobs[&slot].key.unwrap());
    audio
}

fn until_ends(worker: &Worker, jobs: &mut Jobs) {
    while jobs.values().any(|job| job.end.is_none()) {
        hear(worker, jobs);
    }
}

#[test]
fn kennedy_is_heard_while_he_speaks_and_his_texts_stay() {
    let (worker, mut jobs) = (ready(), Jobs::new());
    let mut audio = listen(&worker, &mut jobs, 0);
    let sound = [clip("jfk.wav"), silence(1_000)].concat();
    let player = std::thread::spawn(move || {
        let begin = audio.play(&sound);
        audio.end();
        begin
    });
    until_ends(&worker, &mut jobs);
    let (begin, job) = (player.join().unwrap(), &jobs[&0]);
    assert_eq!(distance(&words(KENNEDY), &words(&job.text())), 0, "{}", job.text());
    assert_eq!(job.last.missing, 0);
    let Some(Ok(compute_us)) = job.end else { panic!("{:?}", job.end) };
    println!("latencies {:?}", job.latencies(begin));
    println!("{} partials, {:?}", job.partials.len(), job.partials);
    println!("{} ms of work for {} ms of sound, {:?}", compute_us / 1_000, job.last.audio_ms, job.last);
    worker.stop();
}

#[test]
fn a_paused_stream_goes_on_and_what_was_said_is_final() {
    let (worker, mut jobs) = (ready(), Jobs::new());
    let mut audio = listen(&worker, &mut jobs, 0);
    let sound = clip("jfk.wav");
    let (first, second) = sound.split_at(16_000 * 5);
    audio.push(first);
    audio.pause();
    audio.open(jobs[&0].key.unwrap());
    audio.push(second);
    audio.end();
    until_ends(&worker, &mut jobs);
    let heard = words(&jobs[&0].text());
    // A word may have been cut in two.
    assert!(distance(&words(KENNEDY), &heard) <= 4, "{heard:?}");
    let cut = |(_, segment): &(Instant, Segment)| segment.end_ms <= 5_000 || segment.start_ms >= 5_000;
    assert!(jobs[&0].segments.iter().all(cut), "no segment is of both");
    worker.stop();
}

#[test]
fn silence_and_noise_have_no_text() {
    let (worker, mut jobs) = (ready(), Jobs::new());
    let mut state = 7_u64;
    let mut noise = |amplitude: f64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((state >> 40) as f64 / f64::from(1 << 23) - 1.0) * amplitude) as i16
    };
    let quiet: Vec<i16> = (0..16_000 * 5).map(|_| noise(60.0)).collect();
    let loud: Vec<i16> = (0..16_000 * 5).map(|_| noise(6_000.0)).collect();
    for (slot, sound) in [silence(5_000), quiet, loud].into_iter().enumerate() {
        let mut audio = listen(&worker, &mut jobs, slot as u32);
        audio.push(&sound);
        audio.end();
        until_ends(&worker, &mut jobs);
        let job = &jobs[&(slot as u32)];
        assert!(job.segments.is_empty(), "{}", job.text());
        assert_eq!((job.last.audio_ms, job.last.speech), (5_000, false));
    }
    worker.stop();
}

#[test]
fn what_is_lost_is_forgotten_and_others_are_heard_on() {
    let (worker, mut jobs) = (ready(), Jobs::new());
    let sound = clip("jfk.wav");
    let mut streams: Vec<Audio> = (0..4).map(|slot| listen(&worker, &mut jobs, slot)).collect();
    streams.iter_mut().for_each(|audio| audio.push(&sound[..16_000 * 2]));
    let mut packet = streams[0].frame(&sound[..FRAME_SAMPLES]);
    packet[50] ^= 4;
    streams[0].send(&packet);
    worker.say(ToWorker::Cancel { slot: 2 });
    streams[3].push(&sound[16_000 * 2..]);
    streams[3].end();
    drop(streams.remove(1));
    until_ends(&worker, &mut jobs);
    let refused = |fault| Some(Err(JobError::StreamRefused { fault }));
    assert_eq!(jobs[&0].end, refused(StreamFault::Forged));
    assert_eq!(jobs[&1].end, refused(StreamFault::CutOff));
    assert_eq!(jobs[&2].end, Some(Err(JobError::Cancelled)));
    assert_eq!(distance(&words(KENNEDY), &words(&jobs[&3].text())), 0, "{}", jobs[&3].text());
    worker.stop();
}

/// Each of eight is heard in real time, or is refused before it begins.
#[test]
fn eight_streams_are_heard_in_real_time_or_refused() {
    let (worker, mut jobs) = (ready(), Jobs::new());
    let file = SealedFile::from_bytes("audio", &std::fs::read(folder().join("jfk.wav")).unwrap()).unwrap();
    // As the server's canary: the worker knows its speed by it.
    let audio = ringfence_protocol::Audio::Sealed { bytes: file.len() };
    let canary = ToWorker::Transcribe { slot: 100, domain: 1, weight: 1, options: plain(), audio };
    worker.link.send(&canary, &[file.as_fd()]).unwrap();
    while !matches!(worker.hear(), FromWorker::Done { .. }) {}
    let clips = [("jfk.wav", words(KENNEDY)), (AUSTEN, said_in(AUSTEN))];
    let mut players = Vec::new();
    for slot in 0..8_u32 {
        let mut audio = Audio::listen(&worker.link, slot, 1 + u64::from(slot), plain());
        let answered =
            |jobs: &Jobs| jobs.get(&slot).is_some_and(|job| job.key.is_some() || job.end.is_some());
        while !answered(&jobs) {
            hear(&worker, &mut jobs);
        }
        let Some(key) = jobs[&slot].key else {
            let busy = JobError::StreamRefused { fault: StreamFault::Busy };
            assert_eq!(jobs[&slot].end, Some(Err(busy)));
            println!("{slot}: refused");
            continue;
        };
        audio.open(key);
        let sound = [silence(300 * slot as usize), clip(clips[slot as usize % 2].0), silence(800)].concat();
        players.push((
            slot,
            std::thread::spawn(move || {
                let begin = audio.play(&sound);
                audio.end();
                begin
            }),
        ));
    }
    until_ends(&worker, &mut jobs);
    let mut latencies = Vec::new();
    let (mut errors, mut all, mut busy_us, mut heard_ms) = (0, 0, 0, 0);
    for (slot, player) in players {
        let (begin, job, (_, said)) = (player.join().unwrap(), &jobs[&slot], &clips[slot as usize % 2]);
        assert!(matches!(job.end, Some(Ok(_))), "{:?}", job.end);
        assert_eq!(job.last.missing, 0);
        latencies.extend(job.latencies(begin));
        errors += distance(said, &words(&job.text()));
        all += said.len();
        busy_us += job.busy_us;
        heard_ms += job.last.audio_ms;
        println!("{slot}: {} partials, {:?}:{}", job.partials.len(), job.latencies(begin), job.text());
    }
    latencies.sort();
    println!(
        "p50 {:?}, {errors} errors in {all} words, {:.3} of real time for each stream",
        latencies[latencies.len() / 2],
        busy_us as f64 / 1e3 / heard_ms as f64
    );
    assert!(errors * 10 <= all, "{errors} of {all}");
    worker.stop();
}
