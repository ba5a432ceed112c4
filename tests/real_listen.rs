//! Live sound through a real server: a real sound server's microphone and pushed streams, Whisper and the voice detector with
//! their weights, which `make test` fetches.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

#[path = "support/sound.rs"]
mod sound;
mod support;

use serde_json::{Value, json};
use sound::{Listening, SoundServer, bytes_of, granted, question};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Home, Server, Target};

const MODEL: &str = "whisper-tiny.en";
/// What is said in the sample.
const WORDS: &str = "and so my fellow americans ask not what your country can do for you ask what you can do for your country";
const SECOND: Duration = Duration::from_secs(1);

fn speech(file: &str) -> PathBuf {
    let folder = std::env::var("RINGFENCE_SPEECH").expect("set by `make test`: the folder of speech samples");
    Path::new(&folder).join(file)
}

fn home_with(options: &[String]) -> Home {
    let cache = speech("").with_file_name("archives");
    let mut home = Home::made("listens", |home| {
        home.cli_ok(&["model", "add", MODEL, "silero-vad", "--cache", cache.to_str().unwrap()]);
    });
    home.set_options(&options.iter().map(String::as_str).collect::<Vec<_>>());
    home
}

/// The sample at 16 kHz.
fn jfk() -> Vec<i16> {
    let wav = fs::read(speech("jfk.wav")).unwrap();
    let data = wav.windows(4).position(|window| window == b"data").unwrap() + 8;
    wav[data..].chunks_exact(2).map(|two| i16::from_le_bytes([two[0], two[1]])).collect()
}

/// The same at three times the rate, by lines between samples: what lies above is far below speech.
fn at_48_khz(samples: &[i16]) -> Vec<i16> {
    let between = |pair: &[i16]| {
        let (from, to) = (i32::from(pair[0]), i32::from(pair[1]));
        [0, 1, 2].map(|third| (from + (to - from) * third / 3) as i16)
    };
    samples.windows(2).flat_map(between).collect()
}

/// Small letters and spaces: how word errors are counted.
fn plain(text: &str) -> String {
    let letters = |c: char| if c.is_alphanumeric() || c == '\'' { c.to_ascii_lowercase() } else { ' ' };
    text.chars().map(letters).collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn pushed(framing: &str, pace: &str) -> Value {
    json!({"encoding": "s16le", "rate": 16_000, "channels": 1, "pace": pace, "framing": framing})
}

fn push_body(capability: &str, framing: &str, pace: &str) -> Value {
    json!({"capability": capability, "model": MODEL, "pushed": pushed(framing, pace)})
}

fn microphone(home: &Home, server: &Server, lifetime_ms: u64) -> (u64, Listening) {
    let (grant, capability) = granted(home, server, &question("pulse", MODEL, lifetime_ms));
    let body = json!({"capability": capability, "model": MODEL});
    let mut listening = Listening::start(&server.api(), &body)
        .unwrap_or_else(|answer| panic!("{}\n{}", answer.text(), server.log()));
    let started = listening.until("started");
    assert_eq!(started["host"], "pulse_audio", "{started}");
    (grant, listening)
}

fn captured(server: &Server) -> u64 {
    server.status()["captures"][0]["captured"].as_u64().unwrap_or(0)
}

fn entries(home: &Home, kind: &str) -> Vec<Value> {
    let lines = home.cli_ok(&["--json", "audit", "tail", "-n", "100000"]);
    let entries = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["entry"].clone());
    entries.filter(|entry| entry["kind"] == kind).collect()
}

/// A plain or chunked push, as raw as it can be: the socket after the upgrade.
fn push(server: &Server, capture: u64) -> UnixStream {
    let Target::Unix(path) = server.api() else { panic!("a socket") };
    let mut socket = UnixStream::connect(path).unwrap();
    let head = format!(
        "GET /audio/captures/{capture}/push HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: ringfence-pcm\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    socket
}

#[test]
fn what_is_said_into_a_microphone_comes_as_text_and_the_end_of_the_grant_ends_it_at_once() {
    let Some(sound) = SoundServer::start() else { return };
    let home = home_with(&sound.options());
    let server = home.start();
    let (grant, mut listening) = microphone(&home, &server, 600_000);
    let status = server.status();
    let capture = &status["captures"][0];
    assert_eq!(
        (&capture["state"], &capture["captures_now"], &capture["grant"]),
        (&"running".into(), &true.into(), &grant.into())
    );
    let times = seconds("RINGFENCE_LIVE_S", 60).div_ceil(11);
    let (begun, lasts) = (Instant::now(), SECOND * (11 * times as u32));
    let playing = sound.play(&at_48_khz(&jfk()).repeat(times));
    while begun.elapsed() < lasts || !plain(&listening.text()).ends_with("do for your country") {
        let event = listening.next(Duration::from_secs(40)).expect("the end of what was said");
        assert_ne!(event["event"], "ended", "{event}");
        assert!(begun.elapsed() < lasts + 40 * SECOND, "{}", listening.text());
    }
    drop(playing);
    // A busy machine loses sound between the player and the sound server, which costs words; what is pushed is held exactly.
    let heard = plain(&listening.text());
    let count = |text: &str, word: &str| text.split(' ').filter(|one| *one == word).count();
    let words: HashSet<&str> = WORDS.split(' ').collect();
    let missed = |word: &&str| (times * count(WORDS, word)).saturating_sub(count(&heard, word));
    assert!(words.iter().map(missed).sum::<usize>() <= 5 * times, "{heard}");
    let has = |name: &str| listening.seen.iter().any(|(_, event)| event["event"] == name);
    assert!(has("level"), "how loud it is");
    let view = server.status()["captures"][0].clone();
    assert_eq!((&view["dropped"], &view["missing"]), (&0.into(), &0.into()), "{view}");
    assert!(view["captured"].as_u64().unwrap() >= 50 * 11 * times as u64, "{view}");
    let metrics = server.admin().get("/metrics").text();
    for name in [
        "ringfence_captures_running 1",
        "ringfence_audio_frames_total",
        "ringfence_audio_latency_us",
        "ringfence_audio_jitter_us",
    ] {
        assert!(metrics.contains(name), "{name}");
    }
    let program = programs(server.pid());
    assert_eq!(program.len(), 1, "one program captures");
    let before = Instant::now();
    server.api().send("DELETE", &format!("/grants/{grant}"), &[], b"").ok();
    let took = before.elapsed();
    assert!(programs(server.pid()).is_empty(), "it is gone when the revocation is answered");
    let ended = listening.until_end();
    assert_eq!(ended["reason"], "revoked", "{ended}");
    eprintln!("revocation answered after {took:?}");
    assert_eq!(server.status()["captures"], json!([]));
    let (started, stopped) = (entries(&home, "audio_started"), entries(&home, "audio_stopped"));
    assert_eq!((started.len(), stopped.len()), (1, 1));
    assert_eq!((&stopped[0]["result"], &stopped[0]["grant"]), (&"revoked".into(), &grant.into()));
    let captured_ms = stopped[0]["captured_ms"].as_u64().unwrap();
    assert!(captured_ms > 10_000, "{captured_ms}");
    assert!(server.status()["workers"].as_array().unwrap().len() <= 1);
}

/// The programs of a server that capture.
fn programs(server: u32) -> Vec<u32> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let captures = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let is_of = fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
            stat.rsplit_once(") ").is_some_and(|(_, rest)| {
                rest.split(' ').nth(1) == Some(&server.to_string()) && !rest.starts_with('Z')
            })
        });
        is_of && [&b"pulse\0"[..], b"alsa\0", b"pushed\0"].iter().any(|kind| words.ends_with(kind))
    };
    processes.filter(captures).collect()
}

#[test]
fn a_pause_takes_no_sample_a_renewal_needs_another_yes_and_time_ends_it() {
    let Some(sound) = SoundServer::start() else { return };
    let home = home_with(&sound.options());
    let server = home.start();
    let (_, mut listening) = microphone(&home, &server, 60_000);
    let capture = server.status()["captures"][0]["capture"].clone();
    let order = |order: &str| server.api().post(&format!("/audio/captures/{capture}/{order}"), &json!({}));
    assert_eq!(order("resume").code(), "capture_state");
    assert_eq!(order("pause").ok()["state"], "paused");
    listening.until("paused");
    let before = captured(&server);
    std::thread::sleep(SECOND);
    assert_eq!(captured(&server), before, "no frame is made");
    assert_eq!(order("pause").code(), "capture_state");
    assert_eq!(order("resume").ok()["state"], "running");
    listening.until("resumed");
    std::thread::sleep(3 * SECOND);
    assert!(captured(&server) > before, "it goes on");
    // Another client's, another source's and no grant at all renew nothing.
    let renew = |capability: &str| {
        server.api().post(&format!("/audio/captures/{capture}/renew"), &json!({ "capability": capability }))
    };
    assert_eq!(renew("rfg_").code(), "capability_malformed");
    let (_, other) = granted(&home, &server, &question("pushed", MODEL, 60_000));
    assert_eq!(renew(&other).code(), "grant_out_of_scope");
    let begun = Instant::now();
    let (fresh, capability) = granted(&home, &server, &question("pulse", MODEL, 9_000));
    assert_eq!(renew(&capability).ok()["grant"], fresh);
    listening.until("renewed");
    let ended = listening.until_end();
    assert_eq!(ended["reason"], "expired", "{ended}");
    let lived = begun.elapsed();
    assert!((8 * SECOND..13 * SECOND).contains(&lived), "{lived:?}");
    assert!(programs(server.pid()).is_empty());
    let results: Vec<_> =
        entries(&home, "audio_stopped").iter().map(|entry| entry["result"].clone()).collect();
    assert_eq!(results, ["renewed", "expired"]);
}

#[test]
fn pushed_sound_becomes_text_by_a_websocket_client_and_in_chunks_and_its_end_is_the_end() {
    let home = home_with(&[]);
    let server = home.start();
    let raw = home.folder.path().join("jfk.raw");
    fs::write(&raw, bytes_of(&jfk())).unwrap();
    let (_, capability) = granted(&home, &server, &question("pushed", MODEL, 600_000));
    // As a client of Python's does.
    let mut listening =
        Listening::start(&server.api(), &push_body(&capability, "websocket", "buffered")).unwrap();
    let waiting = listening.until("waiting");
    let Target::Unix(socket) = server.api() else { panic!("a socket") };
    let script = "import sys\nfrom websockets.sync.client import unix_connect\n\
        data = open(sys.argv[1], 'rb').read()\n\
        with unix_connect(sys.argv[2], uri='ws://localhost/audio/captures/' + sys.argv[3] + '/push', ping_interval=None, close_timeout=60) as socket:\n    \
        [socket.send(data[at:at + 6400]) for at in range(0, len(data), 6400)]\n";
    let python =
        std::env::var("RINGFENCE_PYTHON").expect("set by `make test`: a Python with the websockets package");
    let client = Command::new(&python)
        .args([
            "-c",
            script,
            raw.to_str().unwrap(),
            socket.to_str().unwrap(),
            &waiting["capture"].to_string(),
        ])
        .output();
    let client = client.unwrap();
    assert!(client.status.success(), "{}", String::from_utf8_lossy(&client.stderr));
    let ended = listening.until_end();
    assert_eq!(
        (&ended["reason"], plain(ended["text"].as_str().unwrap()).as_str()),
        (&"finished".into(), WORDS),
        "{ended}"
    );
    assert!((11_000..11_100).contains(&ended["audio_ms"].as_u64().unwrap()), "{ended}");
    // As Python's own HTTP does.
    let mut listening =
        Listening::start(&server.api(), &push_body(&capability, "chunked", "buffered")).unwrap();
    let capture = listening.until("waiting")["capture"].as_u64().unwrap();
    assert_eq!(server.api().get(&format!("/audio/captures/{capture}/push")).code(), "upgrade_required");
    let script = "import http.client, socket, sys\n\
        link = http.client.HTTPConnection('localhost')\n\
        link.sock = socket.socket(socket.AF_UNIX)\n\
        link.sock.connect(sys.argv[2])\n\
        link.putrequest('GET', '/audio/captures/' + sys.argv[3] + '/push')\n\
        link.putheader('Connection', 'Upgrade')\n\
        link.putheader('Upgrade', 'ringfence-pcm')\n\
        link.endheaders()\n\
        answer = link.sock.recv(4096)\n\
        assert answer.startswith(b'HTTP/1.1 101'), answer\n\
        data = open(sys.argv[1], 'rb').read()\n\
        for at in range(0, len(data), 5000):\n    \
        part = data[at:at + 5000]\n    \
        link.send(b'%x\\r\\n' % len(part) + part + b'\\r\\n')\n\
        link.send(b'0\\r\\n\\r\\n')\n\
        link.sock.settimeout(60)\n\
        link.sock.recv(1)\n";
    let client = Command::new(&python)
        .args(["-c", script, raw.to_str().unwrap(), socket.to_str().unwrap(), &capture.to_string()])
        .output();
    let client = client.unwrap();
    assert!(client.status.success(), "{}", String::from_utf8_lossy(&client.stderr));
    let ended = listening.until_end();
    assert_eq!(
        (&ended["reason"], plain(ended["text"].as_str().unwrap()).as_str()),
        (&"finished".into(), WORDS),
        "{ended}"
    );
    // What breaks off says so; what nobody pushes is not waited for without end.
    let mut listening =
        Listening::start(&server.api(), &push_body(&capability, "chunked", "real_time")).unwrap();
    let capture = listening.until("waiting")["capture"].as_u64().unwrap();
    let mut socket = push(&server, capture);
    socket.write_all(b"4\r\n\0\0\0\0\r\n").unwrap();
    listening.until("started");
    drop(socket);
    let ended = listening.until_end();
    assert_eq!((&ended["reason"], &ended["code"]), (&"failed".into(), &"audio_truncated".into()), "{ended}");
    assert!(ended["advice"].as_str().unwrap().contains("whole samples"), "{ended}");
    let mut listening =
        Listening::start(&server.api(), &push_body(&capability, "plain", "real_time")).unwrap();
    let capture = listening.until("waiting")["capture"].as_u64().unwrap();
    let mut socket = push(&server, capture);
    // A minute at once is no real time.
    drop(socket.write_all(&vec![0; 60 * 32_000]));
    let ended = listening.until_end();
    assert_eq!(ended["code"], "audio_too_fast", "{ended}");
}

#[test]
fn a_client_that_leaves_takes_its_capture_along_and_a_quota_that_is_used_up_ends_it() {
    let home = home_with(&[]);
    home.quotas("[clients.default]\naudio_s_per_minute = 6\naudio_s_burst = 6\n");
    let server = home.start();
    let (_, capability) = granted(&home, &server, &question("pushed", MODEL, 600_000));
    let mut listening =
        Listening::start(&server.api(), &push_body(&capability, "plain", "real_time")).unwrap();
    let capture = listening.until("waiting")["capture"].as_u64().unwrap();
    let mut socket = push(&server, capture);
    socket.write_all(&[0; 3_200]).unwrap();
    listening.until("started");
    assert_eq!(programs(server.pid()).len(), 1);
    listening.leave();
    let left = Instant::now();
    while !programs(server.pid()).is_empty() {
        assert!(left.elapsed() < SECOND, "the capture goes on without its client");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut listening =
        Listening::start(&server.api(), &push_body(&capability, "plain", "buffered")).unwrap();
    let capture = listening.until("waiting")["capture"].as_u64().unwrap();
    let mut socket = push(&server, capture);
    let pushing = std::thread::spawn(move || drop(socket.write_all(&bytes_of(&jfk()))));
    let ended = listening.until_end();
    assert_eq!((&ended["reason"], &ended["code"]), (&"failed".into(), &"rate_audio".into()), "{ended}");
    pushing.join().unwrap();
    let refused =
        Listening::start(&server.api(), &push_body(&capability, "plain", "buffered")).err().unwrap();
    assert_eq!((refused.status, refused.code().as_str()), (429, "rate_audio"));
    let usage = server.api().get("/usage").ok();
    assert!(usage["clients"][0]["audio_ms"].as_u64().unwrap() >= 6_000, "{usage}");
    let results: Vec<_> =
        entries(&home, "audio_stopped").iter().map(|entry| entry["result"].clone()).collect();
    assert_eq!(results, ["client_gone", "rate_audio"]);
}

/// A sound that is in nothing else: 64 samples in a row of it are found nowhere by chance.
fn marker(length: usize) -> Vec<i16> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 48) as i16 / 4
    };
    (0..length).map(|_| next()).collect()
}

/// All windows of 64 samples that a piece of 128 must have one of, as they would lie in memory or a file: integers and floats.
#[derive(Default)]
struct Windows {
    /// By their first eight bytes.
    windows: HashMap<u64, Vec<u8>>,
    /// Whether one may begin with these eight bytes, by their hash.
    may_begin: Vec<bool>,
}

impl Windows {
    fn of(sounds: &[&[i16]]) -> Self {
        let mut all = Self { may_begin: vec![false; 1 << 20], ..Self::default() };
        for window in sounds.iter().flat_map(|sound| sound.chunks_exact(64)) {
            let floats = window.iter().flat_map(|one| (f32::from(*one) / 32_768.0).to_le_bytes()).collect();
            for bytes in [bytes_of(window), floats] {
                let first = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                all.may_begin[hash(first)] = true;
                all.windows.insert(first, bytes);
            }
        }
        all
    }

    fn are_in(&self, bytes: &[u8]) -> bool {
        const PAGE: usize = 4096;
        for (page, begin) in bytes.chunks(PAGE).zip((0..).step_by(PAGE)) {
            // Most of a process's memory has never been written to; no window is silent.
            if page == &[0; PAGE][..page.len()] {
                continue;
            }
            let last = (begin + page.len()).min(bytes.len().saturating_sub(7));
            let mut at = begin;
            while at < last {
                let first = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
                let found = self.may_begin[hash(first)].then(|| self.windows.get(&first)).flatten();
                if found.is_some_and(|window| bytes[at..].starts_with(window)) {
                    return true;
                }
                at += 1;
            }
        }
        false
    }
}

fn hash(eight: u64) -> usize {
    (eight.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44) as usize
}

/// A number that `make soak` sets higher.
fn seconds(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |value| value.parse().unwrap())
}

#[test]
fn nothing_that_was_heard_is_in_the_server_s_memory_its_home_or_its_log() {
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: only root reads another process's memory");
        return;
    }
    let Some(sound) = SoundServer::start() else { return };
    let home = home_with(&sound.options());
    let server = home.start();
    let (_, mut listening) = microphone(&home, &server, 600_000);
    // What is played at 48 kHz, and what a push brings at 16 kHz, neither of them changed on its way in.
    let length = seconds("RINGFENCE_MARKER_S", 5);
    let (played, given) = (marker(48_000 * length), marker(16_000 * 5 + 7).split_off(7));
    let playing = sound.play(&played);
    let (_, capability) = granted(&home, &server, &question("pushed", MODEL, 600_000));
    let mut second = Listening::start(&server.api(), &push_body(&capability, "plain", "buffered")).unwrap();
    let capture = second.until("waiting")["capture"].as_u64().unwrap();
    let mut socket = push(&server, capture);
    socket.write_all(&bytes_of(&given)).unwrap();
    playing.wait();
    let windows = Windows::of(&[&played, &given]);
    let anywhere = [&[7; 5_000], &bytes_of(&given[1_000..1_128])[..]].concat();
    assert!(
        windows.are_in(&anywhere) && !windows.are_in(&anywhere[..5_100]),
        "the search finds what is there"
    );
    let found = memory_holds(server.pid(), &windows);
    drop(socket);
    second.until_end();
    assert!(!found, "the server's memory");
    assert!(!memory_holds(server.pid(), &windows), "the server's memory after the end");
    listening.next(SECOND);
    for path in files(home.folder.path()) {
        assert!(!windows.are_in(&fs::read(&path).unwrap_or_default()), "{}", path.display());
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        // What is in there is the operator's, whose files the server can't write.
        if kind.is_dir() && entry.file_name() != "models" {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}

fn memory_holds(pid: u32, windows: &Windows) -> bool {
    let memory = fs::OpenOptions::new().read(true).open(format!("/proc/{pid}/mem")).unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut bytes_seen = 0;
    let found = maps
        .lines()
        .filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw")))
        .any(|line| {
            let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            let mut bytes = vec![0; (number(to) - number(from)) as usize];
            let count = std::os::unix::fs::FileExt::read_at(&memory, &mut bytes, number(from)).unwrap_or(0);
            bytes_seen += count;
            windows.are_in(&bytes[..count])
        });
    assert!(found || bytes_seen > 1_000_000, "its memory was read: {bytes_seen}");
    found
}
