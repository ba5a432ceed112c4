//! Files by grant against a real server: asked for, shown, decided by somebody else, read by the worker and nobody else, and
//! over when it is over.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Answer, Home, Server, Target, is_alive};

const NOTE: &str = "the cat sat on the mat";

/// A folder that belongs to the server's user, as what it may give must.
struct Notes(PathBuf);

impl Notes {
    fn new(home: &Home) -> Self {
        let folder = home.folder.path().join("notes");
        fs::create_dir_all(folder.join("sub")).unwrap();
        let notes = Self(folder);
        notes.give(Path::new(""));
        notes.give(Path::new("sub"));
        notes.write("a.md", NOTE.as_bytes());
        notes.write("sub/b.md", b"another text");
        notes
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.join(name), bytes).unwrap();
        self.give(Path::new(name));
    }

    fn give(&self, name: &Path) {
        if rustix::process::getuid().is_root() {
            chown(self.0.join(name), Some(65_534), Some(65_534)).unwrap();
        }
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

fn body(path: &str) -> Value {
    json!({"kind": "file_read", "path": path, "model": "tiny-bert", "reason": "to find passages",
           "results": "an answer to the asker", "lifetime_ms": 600_000, "bytes_max": 100_000_000})
}

fn with(mut body: Value, field: &str, value: impl Into<Value>) -> Value {
    body[field] = value.into();
    body
}

fn ask(server: &Server, body: &Value) -> Value {
    server.api().post("/grants", body).ok()
}

/// A capability string for a folder or file, approved by the operator.
fn granted(home: &Home, server: &Server, body: &Value) -> (u64, String) {
    let grant = ask(server, body)["grant"].as_u64().unwrap();
    home.cli_ok(&["grant", "approve", &grant.to_string()]);
    (grant, claim(server, grant))
}

fn claim(server: &Server, grant: u64) -> String {
    let claimed = server.api().post(&format!("/grants/{grant}/claim"), &json!({})).ok();
    claimed["capability"].as_str().unwrap().to_owned()
}

fn embed(target: &Target, model: &str, capability: &str, path: &str) -> Answer {
    target.embed(&json!({"model": model, "input": {"grant": capability, "path": path}}))
}

/// What the client itself reads, with these headers besides.
fn get_file(target: &Target, capability: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let headers = [&[("ringfence-capability", capability)], headers].concat();
    target.send("GET", &format!("/grants/file?path={path}"), &headers, b"")
}

fn put_file(target: &Target, capability: &str, path: &str, bytes: &[u8]) -> Answer {
    let headers = [("ringfence-capability", capability)];
    target.send("PUT", &format!("/grants/file?path={path}"), &headers, bytes)
}

/// The same body without its model: for the client itself.
fn for_client(mut body: Value, kind: &str) -> Value {
    body["kind"] = kind.into();
    body.as_object_mut().unwrap().remove("model");
    body
}

fn read(server: &Server, capability: &str, path: &str) -> Answer {
    embed(&server.api(), "tiny-bert", capability, path)
}

#[test]
fn a_granted_file_is_what_its_text_is_and_nothing_beside_it_can_be_read() {
    let home = Home::with_tiny();
    home.add_tiny("tiny-other");
    let server = home.start();
    let notes = Notes::new(&home);
    let asked = ask(&server, &body(notes.path()));
    assert_eq!(
        (&asked["state"], &asked["object"]["kind"]),
        (&"pending".into(), &"folder".into()),
        "{asked:#}"
    );
    let grant = asked["grant"].as_u64().unwrap();
    let claimed = server.api().post(&format!("/grants/{grant}/claim"), &json!({}));
    assert_eq!((claimed.status, claimed.code()), (409, "grant_not_claimable".to_owned()));
    // Whoever asks is whoever answers here, and neither the client's socket nor the plain word is enough.
    let approve = format!("/grants/{grant}/approve");
    assert_eq!(server.api().post(&approve, &json!({})).code(), "admin_only");
    assert_eq!(server.admin().post(&approve, &json!({})).code(), "operator_proof_needed");
    let forged = json!({"signature": "AAAA"});
    assert_eq!(server.admin().post(&approve, &forged).code(), "operator_proof_wrong");
    let page = home.cli_ok(&["grant", "show", &grant.to_string()]);
    assert!(page.contains(notes.path()) && page.contains("to find passages"), "{page}");
    home.cli_ok(&["grant", "approve", &grant.to_string(), "--minutes", "5"]);
    let capability = claim(&server, grant);

    let of_file = read(&server, &capability, "a.md").ok();
    let of_text = server.api().embed(&json!({"model": "tiny-bert", "input": NOTE})).ok();
    assert_eq!(of_file["data"], of_text["data"]);
    assert_eq!(read(&server, &capability, "sub/b.md").status, 200);
    notes.write("mark.md", "\u{feff}the cat sat on the mat".as_bytes());
    assert_eq!(read(&server, &capability, "mark.md").ok()["data"], of_text["data"]);

    notes.write("picture", &[b'a', 0xff, 0xfe]);
    symlink("/etc/passwd", notes.0.join("link")).unwrap();
    fs::hard_link(notes.0.join("sub/b.md"), notes.0.join("hard")).unwrap();
    for (path, status, code) in [
        ("../notes/a.md", 400, "grant_path_refused"),
        ("/etc/passwd", 400, "grant_path_refused"),
        ("link", 422, "file_refused"),
        ("hard", 422, "file_refused"),
        ("sub", 422, "file_refused"),
        ("missing", 422, "file_refused"),
        ("picture", 400, "input_not_text"),
    ] {
        let answer = read(&server, &capability, path);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path}: {:#}", answer.json());
    }
    let entries =
        server.api().post("/grants/entries", &json!({"capability": capability, "model": "tiny-bert"})).ok();
    let names: Vec<&str> =
        entries["entries"].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a.md", "hard", "link", "mark.md", "picture", "sub"], "{entries:#}");

    // A copy gives the same, and the same refusals.
    let (_, copies) = granted(&home, &server, &with(body(notes.path()), "snapshot", true));
    assert_eq!(read(&server, &copies, "a.md").ok()["data"], of_text["data"]);
    assert_eq!(read(&server, &copies, "mark.md").ok()["data"], of_text["data"]);
    assert_eq!(read(&server, &copies, "link").code(), "file_refused");
    assert_eq!(read(&server, &copies, "picture").code(), "input_not_text");

    home.cli_ok(&["client", "add", "mail"]);
    assert_eq!(
        embed(&server.client("mail"), "tiny-bert", &capability, "a.md").code(),
        "capability_wrong_holder"
    );
    assert_eq!(embed(&server.api(), "tiny-other", &capability, "a.md").code(), "capability_wrong_audience");
    assert_eq!(read(&server, "rfg_x", "a.md").code(), "capability_malformed");
    assert_eq!(
        server.client("mail").get(&format!("/grants/{grant}")).status,
        404,
        "others' grants are not shown"
    );
    assert_eq!(server.client("mail").get("/grants").ok()["grants"], json!([]));
}

#[test]
fn what_is_revoked_is_gone_with_the_answer_and_what_expires_goes_by_itself() {
    let home = Home::with_tiny();
    let server = home.start();
    let notes = Notes::new(&home);
    let (grant, capability) = granted(&home, &server, &body(notes.path()));
    assert_eq!(read(&server, &capability, "a.md").status, 200);
    let narrow = json!({"capability": capability, "model": "tiny-bert", "path": "sub", "uses_max": 1});
    let narrowed = server.api().post("/grants/narrow", &narrow).ok();
    let less = narrowed["capability"].as_str().unwrap();
    assert_eq!(read(&server, less, "b.md").status, 200);
    assert_eq!(read(&server, less, "b.md").code(), "grant_used_up");
    assert_eq!(read(&server, less, "../a.md").code(), "grant_path_refused");
    assert_eq!(server.status()["grants"], json!({"open": 2, "file_services": 1}));

    // Jobs go on while it is taken back; none that is asked for after the answer succeeds.
    let api = server.api();
    let string = capability.clone();
    let reader = std::thread::spawn(move || {
        let mut last = Instant::now();
        loop {
            let begun = Instant::now();
            let answer = embed(&api, "tiny-bert", &string, "a.md");
            match answer.status {
                200 => last = begun,
                403 => return (last, answer.code()),
                status => panic!("{status}: {:#}", answer.json()),
            }
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    let revoked = server.api().send("DELETE", &format!("/grants/{grant}"), &[], b"").ok();
    let answered = Instant::now();
    assert_eq!(revoked["state"], "revoked");
    let (last, code) = reader.join().unwrap();
    assert!(last < answered && code == "grant_revoked", "{code}");
    assert_eq!(read(&server, less, "b.md").code(), "grant_revoked", "what was narrowed from it too");
    assert_eq!(server.status()["grants"], json!({"open": 0, "file_services": 0}));

    // Bytes: two times the file, and no more.
    let (_, few) = granted(&home, &server, &with(body(notes.path()), "bytes_max", 2 * NOTE.len()));
    assert_eq!([(); 2].map(|()| read(&server, &few, "a.md").status), [200, 200]);
    assert_eq!(read(&server, &few, "a.md").code(), "grant_used_up");
    let (_, fewer) = granted(&home, &server, &with(body(notes.path()), "bytes_max", NOTE.len() - 1));
    assert_eq!(read(&server, &fewer, "a.md").code(), "file_refused");

    // A file service that dies takes its grant along.
    let (grant, capability) = granted(&home, &server, &body(notes.path()));
    for (pid, words) in programs_of(&server) {
        if words.ends_with("\0read\0") {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
    server.await_status("the end of the grants", |status| status["grants"]["open"] == 0);
    assert_eq!(read(&server, &capability, "a.md").code(), "grant_revoked");
    assert_eq!(server.api().get(&format!("/grants/{grant}")).ok()["state"], "revoked");

    let (_, short) = granted(&home, &server, &with(body(notes.path()), "lifetime_ms", 1_500));
    assert_eq!(read(&server, &short, "a.md").status, 200);
    server.await_status("the end of a grant", |status| status["grants"]["open"] == 0);
    assert_eq!(read(&server, &short, "a.md").code(), "grant_expired");
}

#[test]
fn a_granted_file_is_embedded_by_its_passages_with_where_each_is() {
    let home = Home::with_tiny();
    let server = home.start();
    let notes = Notes::new(&home);
    let text = "\u{feff}We see two.\n\nThe water is hot and long.\n\nThey go.\n";
    notes.write("a.md", text.as_bytes());
    notes.write("empty.md", b" \n");
    let passages = |capability: &str, path: &str, tokens: u32| {
        let input = json!({"grant": capability, "path": path, "passage_tokens": tokens});
        server.api().embed(&json!({"model": "tiny-bert", "input": input}))
    };
    for snapshot in [false, true] {
        let (_, capability) = granted(&home, &server, &with(body(notes.path()), "snapshot", snapshot));
        let answer = passages(&capability, "a.md", 6).ok();
        let data = answer["data"].as_array().unwrap();
        let texts: Vec<&str> = data
            .iter()
            .map(|passage| {
                let at = |field: &str| passage[field].as_u64().unwrap() as usize;
                &text[at("start")..at("end")]
            })
            .collect();
        assert_eq!(texts, ["We see two.", "The water is hot and", "long.\n\nThey go."], "{answer:#}");
        for (passage, text) in data.iter().zip(&texts) {
            let alone = server.api().embed(&json!({"model": "tiny-bert", "input": text})).ok();
            assert_eq!(passage["embedding"], alone["data"][0]["embedding"]);
        }
        assert_eq!(passages(&capability, "empty.md", 6).ok()["data"], json!([]));
        assert_eq!(passages(&capability, "a.md", 0).code(), "passage_tokens_invalid");
        assert_eq!(passages(&capability, "a.md", u32::MAX).ok()["data"].as_array().unwrap().len(), 1);
    }
    let (_, capability) = granted(&home, &server, &body(notes.path()));
    notes.write("many.md", "we ".repeat(2_049).as_bytes());
    let many = passages(&capability, "many.md", 1);
    assert_eq!((many.status, many.code().as_str()), (413, "input_too_large"));
    let both = json!({"grant": capability, "path": "a.md", "passage_tokens": 9});
    let both = json!({"model": "tiny-bert", "input": both, "truncate": true});
    assert_eq!(server.api().embed(&both).code(), "passage_tokens_invalid");
}

#[test]
fn a_client_reads_and_writes_what_it_was_granted_itself_and_nothing_else() {
    let home = Home::with_tiny();
    let server = home.start();
    let notes = Notes::new(&home);
    let api = server.api();
    let long: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    notes.write("long", &long);
    let (grant, reads) = granted(&home, &server, &for_client(body(notes.path()), "file_read"));
    let (_, writes) =
        granted(&home, &server, &for_client(body(&format!("{}/sub", notes.path())), "file_write"));

    assert_eq!(get_file(&api, &reads, "long", &[]).body, long);
    let part = get_file(&api, &reads, "long", &[("range", "bytes=100000-199999")]);
    assert_eq!((part.status, &part.body[..]), (206, &long[100_000..200_000]));
    assert_eq!(part.header("content-range"), Some("bytes 100000-199999/1200000"));
    let tail = get_file(&api, &reads, "long", &[("range", "bytes=1199999-9999999")]);
    assert_eq!((tail.status, &tail.body[..]), (206, &long[1_199_999..]));
    for wrong in ["bytes=1200000-", "bytes=2-1", "lines=1-2"] {
        let answer = get_file(&api, &reads, "long", &[("range", wrong)]);
        assert_eq!((answer.status, answer.code().as_str()), (416, "range_invalid"), "{wrong}");
    }

    // What is there is replaced whole; what is written is read back.
    for bytes in [&long[..], b"short", b""] {
        let written = put_file(&api, &writes, "new%20file", bytes).ok();
        assert_eq!(written, json!({"bytes": bytes.len()}));
        assert_eq!(get_file(&api, &reads, "sub/new%20file", &[]).body, bytes);
    }

    // A body that breaks off leaves the old file.
    put_file(&api, &writes, "kept", b"old").ok();
    let mut stream = api.connect();
    let head = format!(
        "PUT /grants/file?path=kept HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\nringfence-capability: {writes}\r\n\r\nnew"
    );
    stream.write_all(head.as_bytes()).unwrap();
    drop(stream);
    assert_eq!(get_file(&api, &reads, "sub/kept", &[]).body, b"old");
    let names: Vec<_> =
        fs::read_dir(notes.0.join("sub")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "nothing half is left: {names:?}");

    symlink("/etc/passwd", notes.0.join("sub/link")).unwrap();
    for (answer, status, code) in [
        (get_file(&api, &writes, "kept", &[]), 403, "grant_out_of_scope"),
        (put_file(&api, &reads, "sub/kept", b"x"), 403, "grant_out_of_scope"),
        (put_file(&api, &writes, "../a.md", b"x"), 400, "grant_path_refused"),
        (put_file(&api, &writes, "link", b"x"), 422, "file_refused"),
        (put_file(&api, &writes, "no/folder", b"x"), 422, "file_refused"),
        (get_file(&api, &reads, "sub", &[]), 422, "file_refused"),
        (get_file(&api, &reads, "sub/link", &[]), 422, "file_refused"),
        (api.get("/grants/file?path=a.md"), 401, "capability_missing"),
        (get_file(&api, &reads, "a.md&mode=all", &[]), 400, "query_invalid"),
        (read(&server, &reads, "a.md"), 403, "capability_wrong_audience"),
    ] {
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{:#}", answer.json());
    }

    // Only what was moved counts.
    let least =
        with(for_client(body(&format!("{}/a.md", notes.path())), "file_read"), "bytes_max", 2 * NOTE.len());
    let (_, few) = granted(&home, &server, &least);
    assert_eq!([(); 2].map(|()| get_file(&api, &few, "", &[]).body), [NOTE.as_bytes(); 2]);
    assert_eq!(get_file(&api, &few, "", &[]).code(), "grant_used_up");
    let little = with(for_client(body(&format!("{}/sub", notes.path())), "file_write"), "bytes_max", 4);
    let (_, little) = granted(&home, &server, &little);
    assert_eq!(put_file(&api, &little, "kept", b"too long").code(), "file_refused");
    put_file(&api, &little, "kept", b"fits").ok();
    assert_eq!(put_file(&api, &little, "kept", b"x").code(), "grant_used_up");

    // A body that nobody needs may come late, and may be empty.
    let (late, _) = granted(&home, &server, &for_client(body(notes.path()), "file_read"));
    let answer = api.post(&format!("/grants/{late}/claim"), &json!({"capability": "x"}));
    assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_request"));

    // A client that has stopped reading gets no further byte after a revocation but what was on its way.
    notes.write("huge", &vec![7; 64 << 20]);
    let mut slow = api.connect();
    let head = format!(
        "GET /grants/file?path=huge HTTP/1.1\r\nhost: localhost\r\nringfence-capability: {reads}\r\n\r\n"
    );
    slow.write_all(head.as_bytes()).unwrap();
    let mut first = [0; 1_000];
    slow.read_exact(&mut first).unwrap();
    api.send("DELETE", &format!("/grants/{grant}"), &[], b"").ok();
    let mut rest = Vec::new();
    drop(slow.read_to_end(&mut rest));
    assert!(rest.len() < 4 << 20, "{} bytes came after the revocation", rest.len());
    assert_eq!(get_file(&api, &reads, "a.md", &[]).code(), "grant_revoked");
}

#[test]
fn rules_decide_beforehand_and_broken_ones_for_nobody() {
    let home = Home::with_tiny();
    let server = home.start();
    let notes = Notes::new(&home);
    let rules = home.path().join("grants.toml");
    let rule = |decision: &str| {
        format!(
            "[[rule]]\nclient = \"*\"\nkind = \"file_read\"\ndecision = \"{decision}\"\nbelow = \"{}\"\nuntil = 2100-01-01\n",
            notes.path()
        )
    };
    fs::write(&rules, rule("allow")).unwrap();
    make_readable(&rules);
    let answer = server.api().post("/grants", &body(&format!("{}/a.md", notes.path())));
    assert_eq!((answer.status, &answer.ok()["state"]), (201, &"live".into()));
    let capability = claim(&server, answer.ok()["grant"].as_u64().unwrap());
    assert_eq!(read(&server, &capability, "").status, 200, "the root is the file");
    fs::write(&rules, rule("deny")).unwrap();
    assert_eq!(server.api().post("/grants", &body(notes.path())).code(), "grant_denied_by_rule");
    fs::write(&rules, "[[rule]]\nclient = 1\n").unwrap();
    let broken = server.api().post("/grants", &body(notes.path()));
    assert_eq!((broken.status, broken.code()), (503, "grant_rules_invalid".to_owned()));
}

fn make_readable(path: &Path) {
    if rustix::process::getuid().is_root() {
        chown(path, Some(65_534), Some(65_534)).unwrap();
    }
}

/// A server on which two clients have files by a rule, and whose worker a test may stop.
struct Forgetting {
    _home: Home,
    server: Server,
    notes: Notes,
}

impl Forgetting {
    fn new() -> Self {
        let home = Home::with_tiny();
        let server = home.start();
        let notes = Notes::new(&home);
        let rules = home.path().join("grants.toml");
        let rule = "[[rule]]\nclient = \"*\"\nkind = \"file_read\"\ndecision = \"allow\"\nuntil = 2100-01-01\nbelow = ";
        fs::write(&rules, format!("{rule}\"{}\"\n", notes.path())).unwrap();
        make_readable(&rules);
        for client in ["notes", "mail"] {
            home.cli_ok(&["client", "add", client]);
        }
        Self { _home: home, server, notes }
    }

    fn plain(&self) -> Answer {
        self.server.api().embed(&json!({"model": "tiny-bert", "input": NOTE}))
    }

    fn live(&self, client: &str, snapshot: bool) -> (u64, String) {
        let target = self.server.client(client);
        let grant = target.post("/grants", &with(body(self.notes.path()), "snapshot", snapshot)).ok();
        let grant = grant["grant"].as_u64().unwrap();
        let claimed = target.post(&format!("/grants/{grant}/claim"), &json!({})).ok();
        (grant, claimed["capability"].as_str().unwrap().to_owned())
    }

    /// The only worker, which from now on hears nothing.
    fn stopped_worker(&self) -> i32 {
        assert_eq!(self.plain().status, 200);
        let worker = self.server.worker_pid();
        signal(worker, rustix::process::Signal::STOP);
        worker
    }

    fn await_running(&self, jobs: u64) {
        self.server.await_status("jobs in the worker", |status| status["models"][0]["running"] == jobs);
    }

    fn revoke(&self, client: &str, grant: u64) {
        self.server.client(client).send("DELETE", &format!("/grants/{grant}"), &[], b"").ok();
    }

    /// Ends a grant while a stopped worker has its file and another's job. How long until the worker is gone, if it is.
    fn round(&self, client: &str, snapshot: bool) -> Option<Duration> {
        let worker = self.stopped_worker();
        let (grant, capability) = self.live(client, snapshot);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| self.plain());
            self.await_running(1);
            let file = scope.spawn(|| embed(&self.server.client(client), "tiny-bert", &capability, "a.md"));
            self.await_running(2);
            let begun = Instant::now();
            self.revoke(client, grant);
            let gone = gone_within(worker, begun, Duration::from_secs(1));
            if gone.is_none() {
                signal(worker, rustix::process::Signal::CONT);
            }
            assert_eq!(file.join().unwrap().code(), "grant_revoked");
            let other = other.join().unwrap();
            assert_eq!(other.status, 200, "{:#}", other.json());
            gone
        })
    }

    fn device_us(&self, client: &str) -> u64 {
        self.server.client(client).get("/usage").ok()["clients"][0]["device_us"].as_u64().unwrap()
    }
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn gone_within(pid: i32, begun: Instant, limit: Duration) -> Option<Duration> {
    while is_alive(pid) {
        if begun.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Some(begun.elapsed())
}

#[test]
fn a_worker_that_does_not_forget_is_killed_at_once_on_its_clients_account_and_not_too_often() {
    let ground = Forgetting::new();
    let mut times = Vec::new();
    for client in ["notes", "mail"] {
        let mut rounds = (0..15).map(|round| ground.round(client, round % 2 == 1));
        let killed: Vec<Duration> = rounds.by_ref().map_while(|gone| gone).collect();
        assert!((5..15).contains(&killed.len()), "{client}: {killed:?}");
        // Each took the device for the grace, and a load.
        let charged = ground.device_us(client);
        assert!(charged > 40_000 * killed.len() as u64, "{client} was charged {charged} us");
        times.extend(killed);
    }
    println!("workers gone after {times:?}");
    assert!(times.iter().all(|time| *time >= Duration::from_millis(40)), "sooner than may be: {times:?}");
    // The model was never broken, and whoever asks is told.
    assert_eq!(ground.plain().status, 200);
    let told = (1..200).map(|job| ground.server.admin().get(&format!("/jobs/{job}")).json()).find(|job| {
        let decisions = job["decisions"].as_array().map(Vec::as_slice).unwrap_or_default();
        decisions.iter().any(|made| {
            made["rule"] == "ForgetGrace" && made["action"].as_str().unwrap().ends_with("forget_ignored")
        })
    });
    assert_eq!(told.unwrap()["ended"]["rule"], "GrantEnded");
}

#[test]
fn a_job_that_its_client_left_is_forgotten_when_its_grant_ends_or_the_client_is_removed() {
    let ground = Forgetting::new();
    for (client, removed) in [("notes", false), ("mail", true)] {
        let worker = ground.stopped_worker();
        let (grant, capability) = ground.live(client, false);
        let mut stream = ground.server.client(client).connect();
        let body = json!({"model": "tiny-bert", "input": {"grant": capability, "path": "a.md"}}).to_string();
        let head = format!(
            "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        ground.await_running(1);
        if !removed {
            drop(stream);
            ground.await_running(0);
            // A client that leaves is no reason to hurry.
            assert_eq!(gone_within(worker, Instant::now(), Duration::from_millis(300)), None);
        }
        let begun = Instant::now();
        if removed {
            ground.server.admin().send("DELETE", &format!("/clients/{client}"), &[], b"").ok();
        } else {
            ground.revoke(client, grant);
        }
        let gone = gone_within(worker, begun, Duration::from_secs(1));
        println!("{client}: the worker was gone after {gone:?}");
        assert!(gone.is_some(), "{client}: {}", ground.server.log());
        assert_eq!(ground.plain().status, 200);
    }
}

#[test]
fn what_must_not_be_given_is_not_even_asked_about() {
    let home = Home::with_tiny();
    let server = home.start();
    let notes = Notes::new(&home);
    symlink(notes.path(), home.folder.path().join("alias")).unwrap();
    let own = home.path();
    for (path, code) in [
        (own.to_str().unwrap(), "path_excluded"),
        (own.join("models").to_str().unwrap(), "path_excluded"),
        (home.folder.path().to_str().unwrap(), "path_excluded"),
        ("/", "path_excluded"),
        ("notes", "path_invalid"),
        ("/etc/../etc", "path_invalid"),
        (home.folder.path().join("alias").to_str().unwrap(), "path_refused"),
        (&format!("{}/missing", notes.path()), "path_refused"),
        ("/proc/self", "path_refused"),
        ("/dev/null", "path_refused"),
    ] {
        let answer = server.api().post("/grants", &body(path));
        assert_eq!(answer.code(), code, "{path}: {:#}", answer.json());
    }
    let mut wrong = body(notes.path());
    for (field, value) in [
        ("reason", json!("a\nApproved: yes")),
        ("results", json!("")),
        ("lifetime_ms", json!(0)),
        ("lifetime_ms", json!(90_000_000)),
        ("bytes_max", json!(0)),
    ] {
        let right = std::mem::replace(&mut wrong[field], value);
        assert_eq!(server.api().post("/grants", &wrong).code(), "grant_invalid", "{field}");
        wrong[field] = right;
    }
    assert_eq!(server.status()["grants"], json!({"open": 0, "file_services": 0}), "nothing is left behind");
}

/// `ringfence grant watch --exec COMMAND` in the background.
struct Watcher(Child);

impl Watcher {
    fn start(home: &Home, exec: &str) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_ringfence-server")).with_file_name("ringfence");
        let mut command = Command::new(program);
        command.args(["grant", "watch", "--exec", exec, "--home"]).arg(home.path());
        command.arg("--config").arg(home.config()).arg("--passphrase-file").arg(home.passphrase());
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_command_answers_questions_as_they_come() {
    let home = Home::with_tiny();
    let server = home.start();
    let notes = Notes::new(&home);
    // It says yes to what is about passages, and no to the rest.
    let _watcher = Watcher::start(&home, "if grep -q passages; then echo approve 1; else echo deny; fi");
    let state = |reason: &str| {
        let asked = ask(&server, &with(body(notes.path()), "reason", reason));
        let path = format!("/grants/{}?wait_ms=60000", asked["grant"]);
        server.api().get(&path).ok()["state"].clone()
    };
    assert_eq!(state("to find passages"), "live");
    assert_eq!(state("because"), "denied");
}

/// The programs that the server has started, with their command lines.
fn programs_of(server: &Server) -> Vec<(rustix::process::Pid, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let children = tasks.flat_map(|task| {
        let text = fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        text.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()).collect::<Vec<_>>()
    });
    let words = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        (rustix::process::Pid::from_raw(pid).unwrap(), text)
    };
    children.map(words).collect()
}

/// Descriptors and children of the server.
fn held(server: &Server) -> (usize, usize) {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let children = tasks.map(|task| {
        let path = task.unwrap().path().join("children");
        fs::read_to_string(path).unwrap_or_default().split_whitespace().count()
    });
    (descriptors, children.sum())
}

/// How many grants come and go one after the other; `make soak` has more.
fn rounds() -> usize {
    std::env::var("RINGFENCE_GRANT_ROUNDS").map_or(100, |text| text.parse().unwrap())
}

#[test]
fn many_grants_at_a_time_and_one_after_the_other_leave_nothing_behind() {
    let home = Home::with_tiny();
    let server = home.start();
    let notes = Notes::new(&home);
    let rules = home.path().join("grants.toml");
    let rule =
        "[[rule]]\nclient = \"*\"\nkind = \"file_read\"\ndecision = \"allow\"\nuntil = 2100-01-01\nbelow = ";
    fs::write(&rules, format!("{rule}\"{}\"\n", notes.path())).unwrap();
    make_readable(&rules);
    let live = || {
        let grant = ask(&server, &body(notes.path()))["grant"].as_u64().unwrap();
        (grant, claim(&server, grant))
    };
    let revoke = |grant: u64| server.api().send("DELETE", &format!("/grants/{grant}"), &[], b"").ok();

    let (root, capability) = live();
    assert_eq!(read(&server, &capability, "a.md").status, 200);
    let narrow = json!({"capability": capability, "model": "tiny-bert", "path": "sub"});
    let mut narrowed = Vec::new();
    for _ in 0..1_000 {
        let answer = server.api().post("/grants/narrow", &narrow).ok();
        narrowed.push(answer["capability"].as_str().unwrap().to_owned());
    }
    assert_eq!(server.status()["grants"], json!({"open": 1_001, "file_services": 1}));
    for capability in narrowed.iter().step_by(50) {
        assert_eq!(read(&server, capability, "b.md").status, 200);
    }
    revoke(root);
    assert_eq!(server.status()["grants"], json!({"open": 0, "file_services": 0}));
    for capability in narrowed.iter().step_by(100) {
        assert_eq!(read(&server, capability, "b.md").code(), "grant_revoked");
    }

    let mut before = None;
    for round in 0..rounds() {
        let (grant, capability) = live();
        assert_eq!(read(&server, &capability, "a.md").status, 200);
        assert_eq!(revoke(grant)["state"], "revoked");
        if round == 10 {
            before = Some(held(&server));
        }
    }
    // A connection or two of this test may still be on its way out.
    let (descriptors, children) = before.unwrap();
    let (descriptors_now, children_now) = held(&server);
    assert!(descriptors_now <= descriptors + 8, "{descriptors} descriptors became {descriptors_now}");
    assert_eq!(children_now, children);
}
