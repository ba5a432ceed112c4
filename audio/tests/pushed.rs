//! Streams that somebody pushes: bytes in, frames out, and every way in which they end.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::disallowed_methods, reason = "tests read the clock")]

mod support;

use ringfence_protocol::{
    AudioError, CaptureEnd, ChunkBytes, FRAME_SAMPLES, Framing, FromAudio, Pace, Pushed, SampleEncoding,
    ToAudio, audio_places,
};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use support::{Live, Sealed, noise};

/// A stream of 16-bit samples at 16 kHz.
fn s16(pace: Pace) -> Pushed {
    let framing = Framing::Plain;
    Pushed {
        framing,
        encoding: SampleEncoding::S16Le,
        rate: 16_000,
        channels: 1,
        pace,
        head: ChunkBytes(vec![]),
    }
}

/// The program's side of it, and the sender's socket.
fn push(pushed: Pushed, ring_frames: u16) -> (Live, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let sealed = Sealed::new("pushed", &audio_places(&[""]));
    let live = sealed.start(Some(theirs.into()), |start| {
        start.pushed = Some(pushed);
        start.ring_frames = ring_frames;
    });
    (live, ours)
}

fn bytes(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

/// Sends it from a thread of its own, and closes.
fn send(mut socket: UnixStream, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        // The program may end first.
        let _sent = socket.write_all(&bytes);
    })
}

fn assert_same(live: &Live, sound: &[i16]) {
    let heard = live.samples();
    assert_eq!(heard[..sound.len()], *sound);
    assert!(
        heard[sound.len()..].iter().all(|sample| *sample == 0)
            && heard.len() < sound.len() + 3 * FRAME_SAMPLES
    );
}

#[test]
fn what_is_pushed_is_what_is_read_and_nothing_is_dropped() {
    // A minute, with a ring of a fifth of a second.
    let sound = noise(60 * 16_000 + 77, 1);
    let (mut live, socket) = push(s16(Pace::Buffered), 10);
    let begun = Instant::now();
    let sender = send(socket, bytes(&sound));
    assert_eq!(live.ended(), CaptureEnd::Finished);
    sender.join().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15), "as fast as it is read");
    assert_same(&live, &sound);
    assert_eq!((live.statistics().dropped, live.reader.statistics().missing), (0, 0));
}

#[test]
fn what_the_server_has_read_already_comes_first() {
    let sound = noise(16_000, 2);
    let all = bytes(&sound);
    // Cut inside a sample.
    let head = ChunkBytes(all[..20_001].to_vec());
    let (mut live, socket) = push(Pushed { head, ..s16(Pace::Buffered) }, 50);
    let sender = send(socket, all[20_001..].to_vec());
    assert_eq!(live.ended(), CaptureEnd::Finished);
    sender.join().unwrap();
    assert_same(&live, &sound);
}

#[test]
fn floating_point_stereo_is_mixed_down() {
    let sound = noise(3_200, 3);
    let interleaved: Vec<u8> = sound
        .iter()
        .flat_map(|sample| [f32::from(*sample) / 16_384.0, 0.0])
        .flat_map(f32::to_le_bytes)
        .collect();
    let pushed = Pushed { encoding: SampleEncoding::F32Le, channels: 2, ..s16(Pace::Buffered) };
    let (mut live, socket) = push(pushed, 50);
    let sender = send(socket, interleaved);
    assert_eq!(live.ended(), CaptureEnd::Finished);
    sender.join().unwrap();
    assert_same(&live, &sound);
}

#[test]
fn real_time_is_taken_as_it_comes_and_faster_is_refused() {
    let (mut live, mut socket) = push(s16(Pace::RealTime), 50);
    live.until_told(&FromAudio::Started);
    let frame = bytes(&noise(FRAME_SAMPLES, 4));
    for _ in 0..25 {
        socket.write_all(&frame).unwrap();
        live.for_ms(20);
    }
    live.until("all frames", |live| live.frames.len() == 25);
    let _sent = socket.write_all(&frame.repeat(200));
    assert_eq!(live.ended(), CaptureEnd::Failed(AudioError::TooFast));
}

#[test]
fn what_is_cut_off_or_no_sound_is_said_so() {
    let ends = |pushed: Pushed, bytes: Vec<u8>| {
        let (mut live, socket) = push(pushed, 50);
        let sender = send(socket, bytes);
        let end = live.ended();
        sender.join().unwrap();
        end
    };
    let buffered = || s16(Pace::Buffered);
    assert_eq!(ends(buffered(), vec![0; 999]), CaptureEnd::Failed(AudioError::Truncated));
    let floats = Pushed { encoding: SampleEncoding::F32Le, ..buffered() };
    let wrong = f32::NAN.to_le_bytes().repeat(100);
    assert_eq!(ends(floats, wrong), CaptureEnd::Failed(AudioError::BadFormat));
    assert_eq!(ends(buffered(), vec![]), CaptureEnd::Finished);
}

#[test]
fn a_format_that_is_not_taken_is_said_so() {
    for pushed in
        [Pushed { rate: 44_101, ..s16(Pace::Buffered) }, Pushed { channels: 0, ..s16(Pace::Buffered) }]
    {
        let (mut live, _socket) = push(pushed, 50);
        live.until_unread("the end", |live| !live.told.is_empty());
        assert_eq!(live.told, [FromAudio::Ended { end: CaptureEnd::Failed(AudioError::BadFormat) }]);
    }
}

#[test]
fn chunks_of_http_and_frames_of_a_websocket_are_unwrapped_and_the_sender_may_stay() {
    let sound = noise(16_000, 6);
    let all = bytes(&sound);
    let chunk = |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
    let mut chunks: Vec<u8> = all.chunks(1_001).flat_map(chunk).collect();
    chunks.extend_from_slice(b"0\r\n\r\n");
    let frame = |part: &[u8]| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        let masked: Vec<u8> =
            part.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        [&[0x82, 0xfe], &length[..], &[1, 2, 3, 4], &masked].concat()
    };
    let mut frames: Vec<u8> = all.chunks(999).flat_map(frame).collect();
    frames.extend_from_slice(&[0x88, 0x80, 0, 0, 0, 0]);
    for (framing, wrapped) in [(Framing::HttpChunks, chunks), (Framing::WebSocket, frames)] {
        let head = ChunkBytes(wrapped[..100].to_vec());
        let (mut live, mut socket) = push(Pushed { framing, head, ..s16(Pace::Buffered) }, 50);
        let mut copy = socket.try_clone().unwrap();
        let rest = wrapped[100..].to_vec();
        let sender = std::thread::spawn(move || copy.write_all(&rest).unwrap());
        assert_eq!(live.ended(), CaptureEnd::Finished);
        sender.join().unwrap();
        assert_same(&live, &sound);
        // Nothing was written to it, and it may be used for an answer by whoever has kept it.
        socket.set_nonblocking(true).unwrap();
        assert!(std::io::Read::read(&mut socket, &mut [0]).map_or(true, |length| length == 0));
    }
}

#[test]
fn a_pause_holds_the_sender_and_a_resume_goes_on() {
    let sound = noise(16_000, 5);
    let (mut live, mut socket) = push(s16(Pace::Buffered), 50);
    live.until_told(&FromAudio::Started);
    socket.write_all(&bytes(&sound[..8_000])).unwrap();
    live.until("the first half", |live| live.frames.len() == 25);
    live.say(ToAudio::Pause);
    live.until_told(&FromAudio::Paused);
    let sender = send(socket, bytes(&sound[8_000..]));
    live.for_ms(300);
    assert_eq!(live.frames.len(), 25);
    live.say(ToAudio::Resume);
    assert_eq!(live.ended(), CaptureEnd::Finished);
    sender.join().unwrap();
    assert_same(&live, &sound);
}
