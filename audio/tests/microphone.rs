//! A real sound server, a real capture: what is heard is what is played, and every end is one.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use ringfence_audio::clock::boot_us;
use ringfence_audio::format::Format;
use ringfence_audio::resample::{RESAMPLED_SAMPLES_MAX, ToStreamRate};
use ringfence_protocol::{
    AudioError, AudioHost, CaptureEnd, FRAME_SAMPLES, FromAudio, Notice, ToAudio, Transform, audio_places,
};
use ringfence_sandbox::Exit;
use support::{Live, MICROPHONE_RATE, Program, Sealed, SoundServer, is_root, listen, noise};

/// The same sound at 16 kHz, that many of its own samples later.
fn at_16_khz(sound: &[i16], later: usize) -> Vec<f64> {
    let mut resampler = ToStreamRate::new(Format::new(MICROPHONE_RATE, 1).unwrap()).unwrap();
    let shifted: Vec<f32> = std::iter::repeat_n(0.0, later)
        .chain(sound.iter().map(|sample| f32::from(*sample) / 32_768.0))
        .collect();
    let mut out = [0.0; RESAMPLED_SAMPLES_MAX];
    let chunks = shifted.chunks_exact(resampler.chunk());
    let made = chunks.flat_map(|chunk| {
        let count = resampler.resample(chunk, &mut out);
        out[..count].to_vec()
    });
    made.map(f64::from).collect()
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The correlation of the whole sound with what was heard, where a piece of it fits best; 0 where that is not
/// all in it.
fn best_correlation(sound: &[i16], heard: &[i16]) -> f64 {
    let heard: Vec<f64> = heard.iter().map(|sample| f64::from(*sample)).collect();
    let of_shift = |later| {
        let played = at_16_khz(sound, later);
        let piece = &played[16_000..16_800];
        let fits = heard.windows(piece.len()).map(|window| correlation(piece, window));
        let (at, _) = fits.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        let from = at.checked_sub(16_000)?;
        // But for its first and last frame, which lie partly in what was before and after it.
        let whole = &played[FRAME_SAMPLES..played.len() - FRAME_SAMPLES];
        Some(correlation(whole, heard.get(from + FRAME_SAMPLES..)?.get(..whole.len())?))
    };
    // The sound begins anywhere between two samples at 16 kHz.
    (0..3).filter_map(of_shift).fold(0.0, f64::max)
}

/// How often a machine that others use may keep the sound server waiting.
const TRIES: usize = 6;

#[test]
fn what_is_heard_is_what_is_played() {
    let Some(server) = SoundServer::start() else { return };
    let sound = noise(3 * MICROPHONE_RATE as usize, 1);
    let mut tries = vec![];
    loop {
        assert!(tries.len() < TRIES, "{tries:?}");
        let live = heard(&server, &sound);
        let found = best_correlation(&sound, &live.samples());
        let (statistics, reader) = (live.statistics(), live.reader.statistics());
        println!("correlation {found:.6}; {statistics:?}; {reader:?}");
        assert_eq!((statistics.dropped, reader.missing), (0, 0));
        assert_eq!(reader.frames, statistics.sent);
        let levels = live
            .told
            .iter()
            .filter(|message| matches!(message, FromAudio::Level(level) if level.peak > 4_000));
        let levels = levels.count();
        if found > 0.99 && statistics.lost == 0 {
            assert!((150..300).contains(&statistics.captured), "{statistics:?}");
            assert!(reader.delay_us < 200_000, "{reader:?}");
            return assert!((15..=51).contains(&levels), "{levels}");
        }
        tries.push((found, statistics.lost));
    }
}

/// A capture of 5 seconds in which that is played.
fn heard(server: &SoundServer, sound: &[i16]) -> Live {
    let mut live = listen(server, |_| {});
    live.until("sound", |live| !live.frames.is_empty());
    let _player = server.play(sound);
    live.for_ms(5_000);
    live.say(ToAudio::Stop);
    assert_eq!(live.ended(), CaptureEnd::Asked);
    assert!(matches!(live.stream_end, Some(Ok(()))));
    assert_eq!(live.program.last_words(), (Exit::Code(0), String::new()));
    live
}

#[test]
fn a_device_is_named_before_it_captures() {
    let Some(server) = SoundServer::start() else { return };
    let socket = server.at("pulse.sock");
    let sealed = Sealed::new("pulse", &audio_places(&[socket.to_str().unwrap(), "", "fakemic.monitor"]));
    let device = "fakemic.monitor".to_owned();
    let opened =
        FromAudio::Opened { host: AudioHost::PulseAudio, device, rate: MICROPHONE_RATE, channels: 1 };
    assert_eq!(sealed.opened, Some(opened));
}

#[test]
fn after_stop_no_frame_comes_and_none_was_captured_later() {
    let Some(server) = SoundServer::start() else { return };
    let mut live = listen(&server, |_| {});
    live.until("sound", |live| live.frames.len() > 20);
    live.say(ToAudio::Stop);
    let stopped_us = boot_us();
    assert_eq!(live.ended(), CaptureEnd::Asked);
    let took_us = boot_us() - stopped_us;
    assert!(took_us < 200_000, "{took_us} us");
    // The stream has said its end; nothing can come behind that.
    assert!(matches!(live.stream_end, Some(Ok(()))));
    assert!(live.frames.last().unwrap().captured_us <= stopped_us + 20_000);
}

#[test]
fn a_pause_takes_nothing_and_a_resume_has_fresh_keys() {
    let Some(server) = SoundServer::start() else { return };
    let mut live = listen(&server, |_| {});
    live.for_ms(500);
    live.say(ToAudio::Pause);
    live.until_told(&FromAudio::Paused);
    let paused_us = boot_us();
    live.for_ms(50);
    let before = live.frames.len();
    live.for_ms(700);
    assert_eq!(live.frames.len(), before);
    live.say(ToAudio::Resume);
    live.until_told(&FromAudio::Resumed);
    live.until("sound", |live| live.frames.len() > before + 20);
    assert!(live.frames[before].captured_us > paused_us + 600_000);
    live.say(ToAudio::Stop);
    assert_eq!(live.ended(), CaptureEnd::Asked);
    // A pause is no loss. What waited when it came may be.
    let statistics = live.statistics();
    assert_eq!((statistics.lost, statistics.dropped), (0, 0), "{statistics:?}");
}

#[test]
fn it_ends_by_itself_when_its_time_is_over_and_may_be_renewed() {
    let Some(server) = SoundServer::start() else { return };
    let until_ms = boot_us() / 1_000 + 3_000;
    let mut live = listen(&server, |start| start.until_boot_ms = until_ms);
    live.until("sound", |live| live.frames.len() > 10);
    let renewed_ms = boot_us() / 1_000 + 700;
    live.say(ToAudio::Renew { until_boot_ms: renewed_ms });
    assert_eq!(live.ended(), CaptureEnd::Expired);
    let now_ms = boot_us() / 1_000;
    assert!((renewed_ms..renewed_ms + 200).contains(&now_ms), "{now_ms} after {renewed_ms}");
    assert!(live.frames.iter().all(|frame| frame.captured_us <= renewed_ms * 1_000));
    assert!(live.frames.len() > 10);
}

#[test]
fn the_end_of_the_link_is_the_end() {
    let Some(server) = SoundServer::start() else { return };
    let mut live = listen(&server, |_| {});
    live.for_ms(300);
    rustix::net::shutdown(&live.program.link, rustix::net::Shutdown::Both).unwrap();
    assert_eq!(live.program.last_words(), (Exit::Code(0), String::new()));
}

#[test]
fn a_sound_server_that_is_killed_is_one_error() {
    let Some(mut server) = SoundServer::start() else { return };
    let mut live = listen(&server, |_| {});
    live.for_ms(500);
    server.kill();
    assert_eq!(live.ended(), CaptureEnd::Failed(AudioError::ServerGone));
    assert!(matches!(live.stream_end, Some(Ok(()))));
    live.for_ms(300);
    let ends = live.told.iter().filter(|message| matches!(message, FromAudio::Ended { .. }));
    assert_eq!(ends.count(), 1);
}

#[test]
fn a_microphone_that_is_removed_is_one_error() {
    let Some(server) = SoundServer::start() else { return };
    let mut live = listen(&server, |_| {});
    live.for_ms(500);
    server.control(&["unload-module", "module-null-sink"]);
    assert_eq!(live.ended(), CaptureEnd::Failed(AudioError::DeviceVanished));
}

#[test]
fn without_a_sound_server_or_a_microphone_it_says_which() {
    let gone = CaptureEnd::Failed(AudioError::ServerGone);
    let nothing = CaptureEnd::Failed(AudioError::NoDevice);
    let places = |path: &std::path::Path, device: &str| audio_places(&[path.to_str().unwrap(), "", device]);
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(Program::start(&["pulse"], &places(&folder.path().join("none"), "")).fails(), {
        // The folder is another user's.
        if is_root() { CaptureEnd::Failed(AudioError::Denied) } else { gone }
    });
    let Some(server) = SoundServer::with("auth-anonymous=1", false) else { return };
    assert_eq!(Program::start(&["pulse"], &places(&server.at("none"), "")).fails(), gone);
    let stale = server.at("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert_eq!(Program::start(&["pulse"], &places(&stale, "")).fails(), gone);
    assert_eq!(Program::start(&["pulse"], &places(&server.at("pulse.sock"), "")).fails(), nothing);
    let Some(server) = SoundServer::start() else { return };
    assert_eq!(Program::start(&["pulse"], &places(&server.at("pulse.sock"), "none")).fails(), nothing);
    // The kernel's devices: there are none here, or else that is no test of it.
    if !std::path::Path::new("/dev/snd").exists() {
        assert_eq!(Program::start(&["alsa"], &audio_places(&[""])).fails(), nothing);
    }
}

#[test]
fn a_sound_server_lets_in_who_has_its_cookie() {
    let Some(server) = SoundServer::with("auth-cookie=FOLDER/cookie", true) else { return };
    let (socket, cookie) = (server.at("pulse.sock"), server.at("cookie"));
    let places = |cookie: &str| audio_places(&[socket.to_str().unwrap(), cookie, "fakemic.monitor"]);
    if is_root() {
        // Another user than the sound server's is let in by nothing else.
        assert_eq!(Program::start(&["pulse"], &places("")).fails(), CaptureEnd::Failed(AudioError::Denied));
        std::os::unix::fs::chown(&cookie, Some(65_534), Some(65_534)).unwrap();
    }
    let mut live = Sealed::new("pulse", &places(cookie.to_str().unwrap())).start(None, |_| {});
    live.until("sound", |live| live.frames.len() > 10);
}

#[test]
fn a_slow_reader_loses_the_oldest_and_both_sides_count_them() {
    let Some(server) = SoundServer::start() else { return };
    let mut live = listen(&server, |start| start.ring_frames = 10);
    live.until("sound", |live| live.frames.len() > 10);
    live.until_unread("drops", |live| {
        live.told
            .iter()
            .any(|message| matches!(message, FromAudio::Statistics(counts) if counts.dropped > 30))
    });
    let before = live.frames.len();
    let resumed_us = boot_us();
    live.until("new sound", |live| live.frames.last().unwrap().captured_us > resumed_us + 300_000);
    live.say(ToAudio::Stop);
    assert_eq!(live.ended(), CaptureEnd::Asked);
    let statistics = live.statistics();
    assert_eq!(live.reader.statistics().missing, statistics.dropped);
    let gaps: Vec<_> = live.frames[before..].iter().filter(|frame| frame.gap > 0).collect();
    // More than that one only where this reader was slow once more.
    assert!(!gaps.is_empty(), "a gap between what lay in the socket and the newest ten");
    assert!(gaps[0].captured_us + 500_000 > resumed_us, "what is left are the newest");
}

#[test]
fn silence_is_told_and_its_end_too() {
    let Some(server) = SoundServer::start() else { return };
    let mut live = listen(&server, |start| start.silence_ms = 400);
    live.until("silence", |live| {
        live.told.iter().any(|message| matches!(message, FromAudio::Notice(Notice::OnlySilence { ms: 400 })))
    });
    let _player = server.play(&noise(48_000, 2));
    live.until_told(&FromAudio::Notice(Notice::SoundAgain));
}

#[test]
fn transforms_are_applied_to_what_is_sent_and_not_to_the_level() {
    let Some(server) = SoundServer::start() else { return };
    let transforms = vec![
        Transform::HighPass { hz: 100 },
        Transform::Obfuscate,
        Transform::Decimate { factor: 4 },
        Transform::GainControl,
    ];
    let mut live = listen(&server, |start| start.transforms = transforms);
    let sound = noise(2 * MICROPHONE_RATE as usize, 3);
    live.until("sound", |live| !live.frames.is_empty());
    let _player = server.play(&sound);
    live.for_ms(3_500);
    live.say(ToAudio::Stop);
    assert_eq!(live.ended(), CaptureEnd::Asked);
    assert!(best_correlation(&sound[..MICROPHONE_RATE as usize * 3 / 2], &live.samples()) < 0.5);
    assert!(live.samples().iter().any(|sample| sample.unsigned_abs() > 1_000));
    assert!(live.told.iter().any(|message| matches!(message, FromAudio::Level(level) if level.peak > 4_000)));
}
