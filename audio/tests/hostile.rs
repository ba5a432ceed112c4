//! Peers that lie, and memory after the end.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::disallowed_methods, reason = "tests read another process's memory")]

mod support;

use ringfence_audio::clock::boot_us;
use ringfence_protocol::{
    AudioError, CaptureEnd, CaptureStart, ChunkBytes, Framing, FromAudio, Pace, Pushed,
    STREAM_PACKET_BYTES_MAX, SampleEncoding, StreamError, StreamEvent, StreamKey, StreamReader, ToAudio,
    Transform, audio_places, receive_packet, send_packet, stream_pair,
};
use ringfence_sandbox::{Act, AudioKind, Exit, Policy, judge};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use support::{Program, Sealed, SoundServer, is_root, listen, noise};

fn start(until_boot_ms: u64, reader: &StreamKey, pushed: Option<Pushed>) -> ToAudio {
    let transforms = vec![];
    let reader = reader.public();
    ToAudio::Start(CaptureStart { reader, until_boot_ms, ring_frames: 50, silence_ms: 0, transforms, pushed })
}

fn pushed() -> Option<Pushed> {
    let (encoding, head) = (SampleEncoding::S16Le, ChunkBytes(vec![]));
    Some(Pushed { framing: Framing::Plain, encoding, rate: 16_000, channels: 1, pace: Pace::Buffered, head })
}

#[test]
fn every_forbidden_act_is_stopped() {
    for kind in AudioKind::ALL {
        let policy = Policy::audio(kind);
        for &act in Act::ALL {
            let program = Program::start(&["probe", kind.name(), act.name()], b"");
            if let Err(failure) = judge(&policy, act, program.child.wait().unwrap()) {
                panic!("{kind:?}: {failure} {:?}", program.last_words());
            }
        }
    }
}

#[test]
fn its_root_holds_the_sound_server_s_socket_and_cookie_and_nothing_else() {
    if !is_root() {
        return eprintln!("skipped: the kernel tells nobody but root what is mounted there");
    }
    let Some(server) = SoundServer::start() else { return };
    std::fs::write(server.at("secret"), [0; 256]).unwrap();
    std::os::unix::fs::chown(server.at("secret"), Some(65_534), None).unwrap();
    let (socket, cookie) = (server.at("pulse.sock"), server.at("secret"));
    let places = audio_places(&[socket.to_str().unwrap(), cookie.to_str().unwrap(), ""]);
    for (kind, places, expected) in [
        ("pulse", places, &["/", "/audio/.pulse-cookie", "/audio/pulse"][..]),
        ("pulse", server.places(), &["/", "/audio/pulse"]),
        ("pushed", audio_places(&[""]), &["/"]),
    ] {
        let sealed = Sealed::new(kind, &places);
        let text = std::fs::read_to_string(format!("/proc/{}/mountinfo", sealed.pid)).unwrap();
        let words = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mut mounts: Vec<(&str, &str)> = words.map(|words| (words[4], words[5])).collect();
        mounts.sort_unstable();
        assert_eq!(mounts.iter().map(|(place, _)| *place).collect::<Vec<_>>(), expected);
        for (place, flags) in mounts {
            for flag in ["ro", "nosuid", "nodev", "noexec"] {
                assert!(flags.split(',').any(|has| has == flag), "{place}: {flags}");
            }
        }
    }
}

#[test]
fn an_illegal_message_ends_the_program() {
    let places = audio_places(&[""]);
    let ends = |what: &str, say: &dyn Fn(&Program)| {
        let sealed = Sealed::new("pushed", &places);
        say(&sealed.program);
        let (exit, words) = sealed.program.last_words();
        assert!(exit == Exit::Code(1) && words.contains(what), "{what}: {exit:?} {words}");
    };
    let (stream, _reader) = stream_pair().unwrap();
    let (sound, _sender) = UnixStream::pair().unwrap();
    let key = StreamKey::generate().unwrap();
    let whole = start(u64::MAX, &key, pushed());
    let say = |program: &Program, message: &ToAudio| program.link.send(message, &[]).unwrap();
    ends("does not decode", &|program| {
        rustix::net::send(&program.link, b"\xff\xff", rustix::net::SendFlags::empty()).unwrap();
    });
    ends("before the start", &|program| say(program, &ToAudio::Pause));
    ends("descriptors", &|program| say(program, &whole));
    ends("descriptors", &|program| program.link.send(&whole, &[stream.as_fd()]).unwrap());
    ends("no socket", &|program| {
        program.link.send(&whole, &[program.child.stdout.as_fd(), sound.as_fd()]).unwrap()
    });
    ends("a pushed stream where none is", &|program| {
        program.link.send(&start(u64::MAX, &key, None), &[stream.as_fd(), sound.as_fd()]).unwrap();
    });
    ends("second start", &|program| {
        for _ in 0..2 {
            program.link.send(&whole, &[stream.as_fd(), sound.as_fd()]).unwrap();
        }
    });
    ends("resume of what is not paused", &|program| {
        program.link.send(&whole, &[stream.as_fd(), sound.as_fd()]).unwrap();
        say(program, &ToAudio::Resume);
    });
    let (exit, words) = Program::start(&["pushed"], b"/etc\0").last_words();
    assert!(exit == Exit::Code(1) && words.contains("the sound's places"), "{exit:?} {words}");
}

#[test]
fn a_reader_without_its_key_hears_nothing() {
    let Some(server) = SoundServer::start() else { return };
    let sealed = Sealed::new("pulse", &server.places());
    let (theirs, ours) = stream_pair().unwrap();
    let told = StreamKey::generate().unwrap();
    sealed.program.link.send(&start(u64::MAX, &told, None), &[theirs.as_fd()]).unwrap();
    // Whoever has the socket, but not the key, can answer with nothing that is taken.
    let mut packet = [0; STREAM_PACKET_BYTES_MAX];
    support::wait_for("the handshake", || receive_packet(&ours, &mut packet).is_ok());
    send_packet(&ours, &packet[..48]).unwrap();
    let end = FromAudio::Ended { end: CaptureEnd::Failed(AudioError::ReaderGone) };
    while sealed.program.hear().0 != end {}
    // And no frame was ever sent.
    assert!(matches!(receive_packet(&ours, &mut packet), Err(StreamError::WouldBlock | StreamError::CutOff)));
}

#[test]
fn a_packet_that_is_changed_or_repeated_on_the_way_ends_the_stream() {
    for repeat in [false, true] {
        let (mut sound, theirs) = UnixStream::pair().unwrap();
        let sealed = Sealed::new("pushed", &audio_places(&[""]));
        let key = StreamKey::generate().unwrap();
        let (to_program, ours) = stream_pair().unwrap();
        let (to_reader, readers) = stream_pair().unwrap();
        let message = start(u64::MAX, &key, pushed());
        sealed.program.link.send(&message, &[to_program.as_fd(), theirs.as_fd()]).unwrap();
        drop(to_program);
        let mut reader = StreamReader::new(readers, key, sealed.key());
        sound.write_all(&[1; 640 * 10]).unwrap();
        let (mut passed, mut frames) = (0, 0);
        let mut end = None;
        let mut packet = [0; STREAM_PACKET_BYTES_MAX];
        while end.is_none() {
            if let Ok(length) = receive_packet(&ours, &mut packet) {
                passed += 1;
                if passed == 5 && repeat {
                    send_packet(&to_reader, &packet[..length]).unwrap();
                } else if passed == 5 {
                    packet[100] ^= 1;
                }
                send_packet(&to_reader, &packet[..length]).unwrap();
            }
            match reader.receive(boot_us()) {
                Ok(StreamEvent::Opened { .. }) => {
                    let length = receive_packet(&to_reader, &mut packet).unwrap();
                    send_packet(&ours, &packet[..length]).unwrap();
                }
                Ok(StreamEvent::Frame(_)) => frames += 1,
                Ok(other) => panic!("{other:?}"),
                Err(StreamError::WouldBlock) => {}
                Err(error) => end = Some(error),
            }
        }
        // The first packet is the handshake.
        assert!(matches!(end, Some(StreamError::Forged)), "{end:?}");
        assert_eq!(frames, if repeat { 4 } else { 3 });
        drop((reader, ours, to_reader));
        let end = FromAudio::Ended { end: CaptureEnd::Failed(AudioError::ReaderGone) };
        while sealed.program.hear().0 != end {}
    }
}

/// Every place of a sound by its first four samples.
struct Marker<'a> {
    sound: &'a [i16],
    places: HashMap<[i16; 4], usize>,
}

/// So many samples in a row are the sound.
const WINDOW: usize = 64;

impl<'a> Marker<'a> {
    fn new(sound: &'a [i16]) -> Self {
        // Silence is in every memory.
        let loud = |(_, four): &(usize, &[i16])| four.iter().all(|sample| sample.unsigned_abs() > 8);
        let places = sound.windows(4).enumerate().filter(loud);
        let places = places.map(|(at, four)| (four.try_into().unwrap(), at)).collect();
        Self { sound, places }
    }

    /// Windows of the sound in these samples, which may differ by one step where they were numbers of another kind.
    fn hits(&self, samples: &[i16]) -> usize {
        let starts = samples.windows(WINDOW).enumerate().filter(|(_, window)| {
            let four: [i16; 4] = window[..4].try_into().unwrap();
            let place = self.places.get(&four).and_then(|at| self.sound.get(*at..at + WINDOW));
            place.is_some_and(|sound| sound.iter().zip(*window).all(|(a, b)| a.abs_diff(*b) <= 1))
        });
        starts.count()
    }
}

/// The readable memory of a process, map by map.
fn memory(pid: i32, mut look: impl FnMut(&str, &[u8])) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    for line in
        maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw")))
    {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        // A map that is gone by now holds nothing.
        if memory.seek(SeekFrom::Start(start)).is_ok() && memory.read_exact(&mut bytes).is_ok() {
            look(line, &bytes);
        }
    }
}

/// Windows of a sound in a process, as numbers of 16 bits at any even place, and as floating-point ones.
fn hits(pid: i32, markers: &[Marker<'_>]) -> usize {
    let mut found = 0;
    memory(pid, |map, bytes| {
        if bytes.iter().all(|byte| *byte == 0) {
            return;
        }
        let whole: Vec<i16> = bytes.chunks_exact(2).map(|two| i16::from_le_bytes([two[0], two[1]])).collect();
        let to_16_bits = |four: &[u8]| {
            let sample = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            (sample * 32_768.0).round() as i16
        };
        let floats: Vec<i16> = bytes.chunks_exact(4).map(to_16_bits).collect();
        // Frames lie at odd places in the ring.
        let odd: Vec<i16> =
            bytes[1..].chunks_exact(2).map(|two| i16::from_le_bytes([two[0], two[1]])).collect();
        for marker in markers {
            let of_kinds = [marker.hits(&whole), marker.hits(&floats), marker.hits(&odd)];
            if of_kinds != [0; 3] {
                println!("{map}: {of_kinds:?}");
            }
            found += of_kinds.iter().sum::<usize>();
        }
    });
    found
}

#[test]
fn after_the_stop_and_in_a_pause_nothing_of_the_sound_is_in_memory() {
    if !is_root() {
        return eprintln!("skipped: nobody but root may read the memory of the program");
    }
    let Some(server) = SoundServer::start() else { return };
    let sound = noise(48_000 * 8, 6);
    let mut live = listen(&server, |start| start.transforms = vec![Transform::HighPass { hz: 20 }]);
    live.until("sound", |live| !live.frames.is_empty());
    let _player = server.play(&sound);
    live.for_ms(1_500);
    // While it runs it is there: what this test looks for it finds.
    live.until_unread("a full ring", |live| {
        live.told.iter().any(
            |message| matches!(message, FromAudio::Statistics(counts) if counts.captured > counts.sent + 20),
        )
    });
    let played = Marker::new(&sound);
    let running = hits(live.pid, &[played]);
    assert!(running > 0, "while it runs the sound is somewhere");
    live.for_ms(500);
    live.say(ToAudio::Pause);
    live.until_told(&FromAudio::Paused);
    live.for_ms(200);
    let heard = live.samples();
    let markers = || [Marker::new(&sound), Marker::new(&heard)];
    assert_eq!(hits(live.pid, &markers()), 0, "in the pause; {running} while it ran");
    live.say(ToAudio::Resume);
    live.until_told(&FromAudio::Resumed);
    live.for_ms(1_000);
    live.say(ToAudio::Stop);
    live.until("the end", |live| matches!(live.told.last(), Some(FromAudio::Ended { .. })));
    // The program waits for the end of its link.
    live.for_ms(200);
    let heard = live.samples();
    assert_eq!(hits(live.pid, &[Marker::new(&sound), Marker::new(&heard)]), 0, "after the stop");
}
