//! Live sound in a worker, driven in process: a tiny random Whisper, a detector that takes a tone for speech, and the test in
//! the place of the server and of the program that captures.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "support/live.rs"]
mod live;
mod support;
#[path = "support/whisper.rs"]
mod tiny;

use candle_core::Tensor;
use live::{Audio, detector, plain, silence, slot_of, tone};
use ringfence_protocol::{
    Architecture, Audio as Stored, Data, EmbedInput, FRAME_SAMPLES, FromWorker, JobError, LISTENED_MS,
    Listened, Segment, StreamFault, StreamKey, StreamPublic, ToWorker, TranscribeOptions,
};
use ringfence_sandbox::SealedFile;
use ringfence_worker::jobs::SlotFault;
use ringfence_worker::serve::End;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use support::{Package, START, Worker};

/// Ready, without a detector.
fn deaf() -> Worker {
    let worker = Worker::new();
    assert!(matches!(worker.hear(), FromWorker::Hello { .. }));
    worker.say(ToWorker::Start(live::start(&START)));
    assert!(matches!(worker.hear(), FromWorker::Sealed { .. }));
    worker.load(&Package(tiny::package(false)));
    let ready = worker.hear();
    assert!(matches!(ready, FromWorker::Ready { .. }), "{ready:?}");
    worker
}

fn load_detector(worker: &Worker, files: &BTreeMap<String, Vec<u8>>) {
    let sealed: Vec<SealedFile> =
        files.values().map(|bytes| SealedFile::from_bytes("test", bytes).unwrap()).collect();
    let descriptors: Vec<_> = sealed.iter().map(AsFd::as_fd).collect();
    let files = files.keys().cloned().collect();
    worker.link.send(&ToWorker::LoadDetector { files }, &descriptors).unwrap();
}

fn ready() -> Worker {
    let worker = deaf();
    load_detector(&worker, &detector());
    worker
}

/// The next message that is not of a step.
fn hear(worker: &Worker) -> FromWorker {
    loop {
        let heard = worker.hear();
        if slot_of(&heard).is_some() {
            return heard;
        }
    }
}

fn key(worker: &Worker, of: u32) -> StreamPublic {
    match hear(worker) {
        FromWorker::Listens { slot, key } if slot == of => key,
        other => panic!("{other:?}"),
    }
}

/// A stream that is open.
fn listen(worker: &Worker, slot: u32) -> Audio {
    let mut audio = Audio::listen(&worker.link, slot, 1 + u64::from(slot), plain());
    audio.open(key(worker, slot));
    audio
}

#[derive(Debug, Default)]
struct Heard {
    segments: Vec<Segment>,
    partials: Vec<String>,
    listened: Vec<Listened>,
    end: Option<Result<u32, JobError>>,
}

/// What is said of each slot until so many jobs have ended, held against what the protocol says.
fn until_ends(worker: &Worker, ends: usize) -> BTreeMap<u32, Heard> {
    let mut all: BTreeMap<u32, Heard> = BTreeMap::new();
    while all.values().filter(|heard| heard.end.is_some()).count() < ends {
        let message = hear(worker);
        let of = all.entry(slot_of(&message).unwrap()).or_default();
        assert!(of.end.is_none(), "nothing after the end");
        match message {
            FromWorker::Segment { sequence, segment, .. } => {
                assert_eq!(sequence as usize, of.segments.len());
                let until = of.listened.last().map_or(u64::MAX / 2, Listened::stream_ms);
                assert!(segment.is_legal(until), "{segment:?} of {until} ms");
                let before = of.segments.last().map_or(0, |segment| segment.end_ms);
                assert!(segment.start_ms >= before && segment.end_ms > segment.start_ms);
                of.segments.push(segment);
            }
            FromWorker::Partial { text, .. } => of.partials.push(text),
            FromWorker::Listened { listened, .. } => {
                let before = of.listened.last().copied().unwrap_or_default();
                let more = listened.audio_ms.checked_sub(before.audio_ms).unwrap();
                assert!(more <= LISTENED_MS, "{before:?}, then {listened:?}");
                of.listened.push(listened);
            }
            FromWorker::Done { tokens, .. } => of.end = Some(Ok(tokens)),
            FromWorker::Failed { error, .. } => of.end = Some(Err(error)),
            FromWorker::Heard { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    all
}

/// Where segments are, within two looks of the detector.
#[track_caller]
fn expect_times(heard: &Heard, expected: &[(u64, u64)]) {
    let times: Vec<(u64, u64)> = heard.segments.iter().map(|s| (s.start_ms, s.end_ms)).collect();
    let near = |found: u64, expected: u64| found.abs_diff(expected) <= 64;
    let agree = times.iter().zip(expected).all(|(a, b)| near(a.0, b.0) && near(a.1, b.1));
    assert!(times.len() == expected.len() && agree, "{times:?} instead of {expected:?}");
}

#[track_caller]
fn expect_failure(worker: &Worker, slot: u32, expected: &JobError) {
    let heard = until_ends(worker, 1);
    assert_eq!(heard[&slot].end, Some(Err(expected.clone())));
}

fn refused(fault: StreamFault) -> JobError {
    JobError::StreamRefused { fault }
}

#[test]
fn each_phrase_becomes_one_segment_with_its_times_in_the_stream() {
    let worker = ready();
    let mut audio = listen(&worker, 3);
    let sound = [silence(500), tone(1_000), silence(700), tone(2_500), silence(100), tone(400), silence(600)];
    audio.push(&sound.concat());
    audio.end();
    let heard = &until_ends(&worker, 1)[&3];
    expect_times(heard, &[(500, 1_500), (2_200, 5_200)]);
    let last = heard.listened.last().unwrap();
    assert_eq!((last.audio_ms, last.frames, last.missing, last.speech), (5_800, 290, 0, false));
    assert!(heard.listened.iter().any(|listened| listened.speech));
    assert!(matches!(heard.end, Some(Ok(tokens)) if tokens > 150), "{:?}", heard.end);
    assert!(heard.segments.iter().all(|segment| !segment.text.is_empty()));
    worker.stop();
}

/// In real time, so that there is a while in which nothing else is to be done.
#[test]
fn what_is_being_said_is_shown_before_it_is_final() {
    let worker = ready();
    let mut audio = listen(&worker, 0);
    let player = std::thread::spawn(move || {
        audio.play(&[tone(3_000), silence(600)].concat());
        audio.end();
    });
    let heard = &until_ends(&worker, 1)[&0];
    expect_times(heard, &[(0, 3_000)]);
    assert!(!heard.partials.is_empty() && heard.partials.iter().all(|text| !text.is_empty()), "{heard:?}");
    player.join().unwrap();
    worker.stop();
}

#[test]
fn silence_and_noises_say_nothing() {
    let worker = ready();
    let mut audio = listen(&worker, 0);
    audio.push(&[silence(2_000), tone(100), silence(2_000)].concat());
    audio.end();
    let heard = &until_ends(&worker, 1)[&0];
    assert!(heard.segments.is_empty() && heard.partials.is_empty(), "{heard:?}");
    assert_eq!(heard.listened.last().unwrap().audio_ms, 4_100);
    worker.stop();
}

#[test]
fn what_was_said_before_a_pause_is_final_and_times_go_on_after_it() {
    let worker = ready();
    let (mut audio, reader) = Audio::pair();
    let options = plain();
    let message = ToWorker::Listen { slot: 9, domain: 4, weight: 2, options, audio: audio.key.public() };
    worker.link.send(&message, &[reader.as_fd()]).unwrap();
    let key = key(&worker, 9);
    for _ in 0..2 {
        audio.open(key);
        audio.push(&[silence(200), tone(800)].concat());
        audio.pause();
    }
    audio.open(key);
    audio.push(&tone(400));
    audio.end();
    expect_times(&until_ends(&worker, 1)[&9], &[(200, 1_000), (1_200, 2_000), (2_000, 2_400)]);
    worker.stop();
}

#[test]
fn missing_frames_are_counted_and_many_of_them_end_a_phrase() {
    let worker = ready();
    let mut audio = listen(&worker, 0);
    audio.push(&tone(1_000));
    audio.sequence += 5;
    audio.push(&tone(1_000));
    audio.sequence += 100;
    audio.push(&tone(1_000));
    audio.end();
    let heard = &until_ends(&worker, 1)[&0];
    expect_times(heard, &[(0, 2_100), (4_100, 5_100)]);
    let last = heard.listened.last().unwrap();
    assert_eq!((last.audio_ms, last.missing, last.stream_ms()), (3_000, 105, 5_100));
    worker.stop();
}

/// All of it comes at once: the worker reads no faster than it can hear, and loses nothing.
#[test]
fn a_stream_that_is_ahead_waits_and_long_phrases_are_cut() {
    let worker = ready();
    let mut audio = listen(&worker, 0);
    let sound = tone(70_000);
    let pushed = std::thread::spawn(move || {
        audio.push(&sound);
        audio.end();
        audio
    });
    let heard = &until_ends(&worker, 1)[&0];
    assert_eq!(heard.listened.last().unwrap().frames, 3_500);
    let (first, last) = (&heard.segments[0], heard.segments.last().unwrap());
    assert!(first.start_ms < 64 && last.end_ms.abs_diff(70_000) < 64);
    let all = &heard.segments;
    assert!(all.len() >= 3 && all.windows(2).all(|pair| pair[0].end_ms == pair[1].start_ms), "{all:?}");
    assert!(all.iter().all(|segment| segment.end_ms - segment.start_ms <= 28_000));
    pushed.join().unwrap();
    worker.stop();
}

#[test]
fn a_stream_that_is_forged_or_cut_off_is_forgotten_at_once() {
    let worker = ready();
    let spoken = tone(2_000);
    let mut changed = listen(&worker, 0);
    changed.push(&spoken);
    let mut packet = changed.frame(&spoken[..FRAME_SAMPLES]);
    packet[100] ^= 1;
    changed.send(&packet);
    expect_failure(&worker, 0, &refused(StreamFault::Forged));

    let mut cut = listen(&worker, 0);
    cut.push(&spoken);
    drop(cut);
    expect_failure(&worker, 0, &refused(StreamFault::CutOff));

    let mut stranger = Audio::listen(&worker.link, 0, 1, plain());
    let known = key(&worker, 0);
    stranger.key = StreamKey::generate().unwrap();
    let (_, packet) = ringfence_protocol::StreamOpening::begin(&stranger.key, known).unwrap();
    stranger.send(&packet);
    expect_failure(&worker, 0, &refused(StreamFault::Forged));

    let mut counting = listen(&worker, 0);
    counting.sequence = u64::MAX - 1;
    counting.push(&spoken[..FRAME_SAMPLES]);
    expect_failure(&worker, 0, &refused(StreamFault::Forged));

    // As long as audio may be, and no longer.
    let mut long = listen(&worker, 0);
    long.sequence = 2 * 3_600 * 50;
    long.push(&spoken[..FRAME_SAMPLES]);
    assert!(matches!(until_ends(&worker, 1)[&0].end, Some(Ok(_))));
    worker.stop();
}

#[test]
fn a_cancelled_stream_is_closed() {
    let worker = ready();
    let mut audio = listen(&worker, 5);
    audio.push(&tone(500));
    worker.say(ToWorker::Cancel { slot: 5 });
    expect_failure(&worker, 5, &JobError::Cancelled);
    let packet = audio.frame(&tone(20));
    assert!(ringfence_protocol::send_packet(&audio.socket, &packet).is_err());
    // Its slot is free, and a cancel that crossed the end does nothing.
    worker.say(ToWorker::Cancel { slot: 5 });
    let mut audio = listen(&worker, 5);
    audio.end();
    assert_eq!(until_ends(&worker, 1)[&5].end, Some(Ok(0)));
    worker.stop();
}

#[test]
fn without_a_detector_that_runs_nothing_is_listened_to() {
    let mut odd = detector();
    let config = String::from_utf8(odd["config.json"].clone()).unwrap().replace("512", "256");
    odd.insert("config.json".to_owned(), config.into_bytes());
    let mut cut = detector();
    cut.get_mut("model.safetensors").unwrap().truncate(10_000);
    let mut other = detector();
    let empty: HashMap<String, Tensor> = HashMap::new();
    other.insert("model.safetensors".to_owned(), safetensors::serialize(&empty, None).unwrap());
    for files in [None, Some(odd), Some(cut), Some(other), Some(BTreeMap::new())] {
        let worker = deaf();
        if let Some(files) = &files {
            load_detector(&worker, files);
        }
        for slot in 0..2 {
            let _audio = Audio::listen(&worker.link, slot, 1, plain());
            expect_failure(&worker, slot, &refused(StreamFault::NoDetector));
        }
        worker.stop();
    }
}

#[test]
fn what_the_model_cannot_do_is_refused_before_anything_is_heard() {
    let worker = ready();
    for options in [
        TranscribeOptions { language: Some("xx".to_owned()), ..plain() },
        TranscribeOptions { translate: true, ..plain() },
    ] {
        let _audio = Audio::listen(&worker.link, 0, 1, options);
        let heard = until_ends(&worker, 1);
        assert!(matches!(heard[&0].end, Some(Err(JobError::LanguageUnknown { .. }))), "{heard:?}");
    }
    worker.stop();
}

#[test]
fn there_are_no_more_streams_than_a_worker_hears() {
    let worker = ready();
    let mut streams: Vec<Audio> = (0..16).map(|slot| listen(&worker, slot)).collect();
    let _one_more = Audio::listen(&worker.link, 16, 1, plain());
    expect_failure(&worker, 16, &refused(StreamFault::Busy));
    for audio in &mut streams {
        audio.push(&[silence(300), tone(1_000), silence(400)].concat());
        audio.end();
    }
    let all = until_ends(&worker, 16);
    for heard in all.values() {
        expect_times(heard, &[(300, 1_300)]);
    }
    worker.stop();
}

/// Seconds of a WAV.
fn wav(seconds: usize) -> Vec<u8> {
    let samples = tone(1_000 * seconds);
    let bytes = 2 * samples.len() as u32;
    let mut wav = b"RIFF".to_vec();
    wav.extend((36 + bytes).to_le_bytes());
    wav.extend(b"WAVEfmt ");
    wav.extend([16, 0, 0, 0, 1, 0, 1, 0]);
    wav.extend(16_000_u32.to_le_bytes());
    wav.extend(32_000_u32.to_le_bytes());
    wav.extend([2, 0, 16, 0]);
    wav.extend(b"data");
    wav.extend(bytes.to_le_bytes());
    wav.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
    wav
}

#[test]
fn stored_and_live_sound_are_heard_beside_each_other() {
    let worker = ready();
    let file = SealedFile::from_bytes("audio", &wav(20)).unwrap();
    let transcribe = |slot, domain| {
        let audio = Stored::Sealed { bytes: file.len() };
        let message = ToWorker::Transcribe { slot, domain, weight: 1, options: plain(), audio };
        worker.link.send(&message, &[file.as_fd()]).unwrap();
    };
    let mut audio = listen(&worker, 0);
    // One of the stream's own domain, one of another.
    transcribe(1, 1);
    transcribe(2, 7);
    audio.push(&[tone(1_000), silence(400)].concat());
    audio.end();
    let heard = until_ends(&worker, 3);
    expect_times(&heard[&0], &[(0, 1_000)]);
    assert!((1..3).all(|slot| matches!(heard[&slot].end, Some(Ok(_)))));
    worker.stop();
}

#[track_caller]
fn ends(worker: Worker, expected: &str) {
    let end = worker.thread.join().unwrap().unwrap_err();
    assert!(matches!(&end, End::Illegal(_) | End::Slot(SlotFault::Taken | SlotFault::Beyond)), "{end}");
    assert!(end.to_string().contains(expected), "{end}");
}

#[test]
fn messages_that_are_not_legal_end_the_worker() {
    let worker = ready();
    load_detector(&worker, &detector());
    ends(worker, "a second voice detector");

    let worker = deaf();
    worker.say(ToWorker::LoadDetector { files: vec!["config.json".to_owned()] });
    ends(worker, "don't belong");

    let listen = |slot, weight, options: TranscribeOptions| ToWorker::Listen {
        slot,
        domain: 1,
        weight,
        options,
        audio: StreamPublic([7; 32]),
    };
    let say = |message: ToWorker| {
        let worker = ready();
        let (_audio, reader) = Audio::pair();
        worker.link.send(&message, &[reader.as_fd()]).unwrap();
        worker
    };
    ends(say(listen(0, 0, plain())), "weight");
    ends(say(listen(256, 1, plain())), "slot");
    let long = TranscribeOptions { prompt: Some("x".repeat(5_000)), ..plain() };
    ends(say(listen(0, 1, long)), "options");
    let worker = ready();
    worker.say(listen(0, 1, plain()));
    ends(worker, "don't belong");
    let worker = ready();
    let _audio = Audio::listen(&worker.link, 3, 1, plain());
    key(&worker, 3);
    let (_audio, reader) = Audio::pair();
    worker.link.send(&listen(3, 1, plain()), &[reader.as_fd()]).unwrap();
    ends(worker, "taken");

    let texts = ready();
    let input = Data::Inline(EmbedInput { items: vec![support::text("a")], truncate: false });
    texts.say(ToWorker::Run { slot: 0, domain: 1, weight: 1, input });
    ends(texts, "texts for a model of audio");
    assert_eq!(START.architecture, Architecture::Bert);
    let worker = Worker::ready(&Package::tiny());
    load_detector(&worker, &detector());
    ends(worker, "audio for a model of texts");
}
