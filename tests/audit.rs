//! The audit log of a real server: what it has after each act, after a kill, and on a disk that is full.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use ringfence_audit::{Entry, Event, Folder, KEYS_BYTES, Keys, Log, Word};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use support::{Home, Server};

const NOTE: &str = "the cat sat on the mat";

fn rounds(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A folder with one file that belongs to the server's user.
fn notes(home: &Home, name: &str, text: &str) -> PathBuf {
    let folder = home.folder.path().join("notes");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), text).unwrap();
    if rustix::process::getuid().is_root() {
        chown(&folder, Some(65_534), Some(65_534)).unwrap();
        chown(folder.join(name), Some(65_534), Some(65_534)).unwrap();
    }
    folder
}

fn question(folder: &Path, reason: &str) -> Value {
    json!({"kind": "file_read", "path": folder.to_str().unwrap(), "model": "tiny-bert", "reason": reason,
           "results": "an answer to the asker", "lifetime_ms": 600_000, "bytes_max": 1_000_000})
}

/// The entries as `ringfence audit tail --json` has them, and in words.
fn log(home: &Home) -> Vec<(Value, String)> {
    let lines = home.cli_ok(&["--json", "audit", "tail", "-n", "100000"]);
    let entry = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        (line["entry"].clone(), line["words"].as_str().unwrap_or("").to_owned())
    };
    lines.lines().map(entry).collect()
}

fn of_kind(home: &Home, kind: &str) -> Vec<(Value, String)> {
    log(home).into_iter().filter(|(entry, _)| entry["kind"] == kind).collect()
}

/// Waits for what comes into the log without anybody waiting for it.
fn await_kind(home: &Home, kind: &str, wanted: usize) -> Vec<(Value, String)> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let found = of_kind(home, kind);
        if found.len() >= wanted {
            return found;
        }
        assert!(Instant::now() < until, "{kind}: {found:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn claim(server: &Server, client: &str, grant: u64) -> String {
    let claimed = server.client(client).post(&format!("/grants/{grant}/claim"), &json!({})).ok();
    claimed["capability"].as_str().unwrap().to_owned()
}

#[test]
fn every_act_is_in_the_log_once_and_in_its_order() {
    let home = Home::with_tiny();
    let server = home.start();
    server.admin().post("/clients", &json!({"name": "anna"})).ok();
    let key = server.admin().post("/keys", &json!({"client": "anna"})).ok();
    let key = key["id"].as_str().unwrap().to_owned();
    let folder = notes(&home, "a.md", NOTE);
    let anna = server.client("anna");

    let session = [("ringfence-session", "s-1"), ("content-type", "application/json")];
    let body = question(&folder, "to find passages").to_string();
    let asked = anna.send("POST", "/grants", &session, body.as_bytes()).ok();
    let grant = asked["grant"].as_u64().unwrap();
    home.cli_ok(&["grant", "approve", &grant.to_string()]);
    let capability = claim(&server, "anna", grant);
    let input = json!({"grant": capability, "path": "a.md"});
    for _ in 0..2 {
        anna.embed(&json!({"model": "tiny-bert", "input": input})).ok();
    }
    let answer = anna.embed(&json!({"model": "tiny-bert", "input": NOTE}));
    answer.ok();
    let job: u64 = answer.header("ringfence-job").unwrap().parse().unwrap();
    let narrower = json!({"capability": capability, "model": "tiny-bert", "path": "a.md"});
    let narrowed = anna.post("/grants/narrow", &narrower).ok()["grant"]["grant"].as_u64().unwrap();
    anna.send("DELETE", &format!("/grants/{grant}"), &[], b"").ok();
    let refused = anna.embed(&json!({"model": "tiny-bert", "input": input}));
    assert_eq!(refused.code(), "grant_revoked");
    for _ in 0..5 {
        assert_eq!(anna.embed(&json!({"model": "none", "input": "a"})).code(), "model_unknown");
    }
    let missing = question(&folder.join("missing"), "to find nothing");
    assert_eq!(anna.post("/grants", &missing).code(), "path_refused");
    let denied = anna.post("/grants", &question(&folder, "again")).ok()["grant"].as_u64().unwrap();
    server.admin().post(&format!("/grants/{denied}/deny"), &json!({})).ok();
    let quotas = b"[queues]\ntotal = 77\n";
    let put = server.admin().send("PUT", "/quotas", &[("content-type", "application/toml")], quotas);
    put.ok();
    server.admin().send("DELETE", &format!("/keys/{key}"), &[], b"").ok();
    await_kind(&home, "refused", 2);
    server.admin().send("DELETE", "/clients/anna", &[], b"").ok();
    assert!(server.stop().success());

    let log = log(&home);
    let kinds: Vec<&str> = log.iter().map(|(entry, _)| entry["kind"].as_str().unwrap()).collect();
    let count = |kind: &str| kinds.iter().filter(|found| **found == kind).count();
    for (kind, wanted) in [
        ("server_started", 1),
        ("trust_changed", 1),
        ("client_changed", 2),
        ("key_changed", 2),
        ("grant_requested", 3),
        ("grant_decided", 2),
        ("grant_narrowed", 1),
        ("grant_used", 1),
        ("grant_use_ended", 2),
        ("grant_closed", 3),
        ("model_loaded", 1),
        ("job_ended", 3),
        ("quotas_changed", 1),
        ("server_stopped", 1),
    ] {
        assert_eq!(
            count(kind),
            wanted,
            "{kind}: {:#?}",
            log.iter().map(|(_, words)| words).collect::<Vec<_>>()
        );
    }
    assert_eq!((kinds[0], *kinds.last().unwrap()), ("server_started", "server_stopped"));
    let of_grant: Vec<&str> = log
        .iter()
        .filter(|(entry, _)| entry["grant"] == grant)
        .map(|(entry, _)| entry["kind"].as_str().unwrap())
        .collect();
    assert_eq!(of_grant[..3], ["grant_requested", "grant_decided", "grant_used"]);
    assert_eq!(*of_grant.last().unwrap(), "grant_closed");

    let requested = &log.iter().find(|(entry, _)| entry["kind"] == "grant_requested").unwrap();
    assert!(
        requested.1.contains("anna (uid") && requested.1.contains(folder.to_str().unwrap()),
        "{requested:?}"
    );
    assert!(requested.1.contains("to find passages") && requested.1.contains("session s-1"), "{requested:?}");
    assert!(requested.0["request"].is_string() && requested.0["run"].is_string());
    let ended = log.iter().find(|(entry, _)| entry["job"] == job).unwrap();
    assert_eq!(
        (&ended.0["result"], &ended.0["tokens"], &ended.0["grant"]),
        (&"ok".into(), &14.into(), &Value::Null)
    );
    assert_eq!(ended.0["request"], answer.header("x-request-id").unwrap());
    let use_ended = &log.iter().find(|(entry, _)| entry["kind"] == "grant_use_ended").unwrap().0;
    assert_eq!((&use_ended["bytes"], &use_ended["result"]), (&NOTE.len().into(), &"ok".into()));
    let digest = home.cli_ok(&["audit", "digest", folder.join("a.md").to_str().unwrap()]);
    assert!(digest.starts_with("blake3:") && use_ended["digest"] == digest.trim_end(), "{use_ended}");
    let refusals: Vec<_> = log.iter().filter(|(entry, _)| entry["kind"] == "refused").collect();
    let unknown: u64 = refusals
        .iter()
        .filter(|(entry, _)| entry["code"] == "model_unknown")
        .map(|(entry, _)| entry["count"].as_u64().unwrap())
        .sum();
    assert_eq!(unknown, 5, "{refusals:#?}");
    assert!(log.iter().any(|(entry, _)| entry["kind"] == "grant_closed" && entry["grant"] == narrowed));
    let loaded = &log.iter().find(|(entry, _)| entry["kind"] == "model_loaded").unwrap().0;
    assert!(loaded["digest"].as_str().unwrap().len() == 64 && loaded["signer"].is_string(), "{loaded}");

    let kept = home.folder.path().join("kept");
    fs::write(&kept, home.cli_ok(&["audit", "checkpoint"])).unwrap();
    let holds = home.cli_ok(&["audit", "verify", "--checkpoint", kept.to_str().unwrap()]);
    assert!(holds.contains("the outside checkpoint"), "{holds}");
    let export = home.folder.path().join("export");
    home.cli_ok(&["audit", "export", export.to_str().unwrap(), "--client", "anna"]);
    let report = fs::read_to_string(export.join("report.txt")).unwrap();
    for words in [
        "asked to read",
        "approved by the operator",
        "first used it",
        "the grant ended (revoked)",
        "14 tokens",
    ] {
        assert!(report.contains(words), "{words}: {report}");
    }
}

/// What a client must not find again anywhere: in its texts, a path, a file, a reason, a model's name.
const CANARY: &str = "Xq7canaryZw3";

fn forms() -> Vec<Vec<u8>> {
    use base64::Engine;
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    // Base64 of a text at each of the three places that it can have in a group.
    let base64 = |offset: usize| {
        let padded = [vec![b' '; offset], CANARY.as_bytes().to_vec()].concat();
        let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(padded);
        text.as_bytes()[offset.div_ceil(3) * 4..text.len() - 2].to_vec()
    };
    let hex: String = CANARY.bytes().map(|byte| format!("{byte:02x}")).collect();
    vec![CANARY.into(), utf16(CANARY), hex.into_bytes(), base64(0), base64(1), base64(2)]
}

fn search(folder: &Path, forms: &[Vec<u8>], hits: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if path.to_string_lossy().contains(CANARY) {
            hits.push(path.clone());
        }
        if kind.is_dir() {
            search(&path, forms, hits);
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            let has = |form: &Vec<u8>| bytes.windows(form.len()).any(|window| window == form.as_slice());
            if forms.iter().any(has) {
                hits.push(path);
            }
        }
    }
}

#[test]
fn what_clients_say_and_what_is_granted_is_in_no_file_of_the_server() {
    let mut home = Home::with_tiny();
    let temporary = home.folder.path().join("temporary");
    fs::create_dir(&temporary).unwrap();
    if rustix::process::getuid().is_root() {
        chown(&temporary, Some(65_534), Some(65_534)).unwrap();
    }
    home.set_variable("TMPDIR", temporary.clone());
    // Beside the home's parent, so that the search does not find what is granted itself.
    let outside = tempfile::tempdir().unwrap();
    let granted = outside.path().join(format!("folder-{CANARY}"));
    fs::create_dir(&granted).unwrap();
    fs::write(granted.join(format!("{CANARY}.md")), format!("{CANARY} {NOTE}")).unwrap();
    if rustix::process::getuid().is_root() {
        chown(outside.path(), Some(65_534), Some(65_534)).unwrap();
        chown(&granted, Some(65_534), Some(65_534)).unwrap();
        chown(granted.join(format!("{CANARY}.md")), Some(65_534), Some(65_534)).unwrap();
    }
    let server = home.start();
    let api = server.api();
    let reason = format!("because {CANARY}");
    let grant = api.post("/grants", &question(&granted, &reason)).ok()["grant"].as_u64().unwrap();
    let mut other = question(&granted, &reason);
    other["model"] = CANARY.into();
    api.post("/grants", &other).ok();
    home.cli_ok(&["grant", "approve", &grant.to_string()]);
    let claimed = api.post(&format!("/grants/{grant}/claim"), &json!({})).ok();
    let capability = claimed["capability"].as_str().unwrap();
    let path = format!("{CANARY}.md");
    api.embed(&json!({"model": "tiny-bert", "input": {"grant": capability, "path": path}})).ok();
    api.embed(&json!({"model": "tiny-bert", "input": CANARY})).ok();
    let long = format!("{CANARY} ").repeat(20_000);
    api.embed(&json!({"model": "tiny-bert", "input": long})).json();
    for input in
        [json!({"model": CANARY, "input": CANARY}), json!({"model": "tiny-bert", "input": {"grant": CANARY}})]
    {
        assert!(api.embed(&input).status >= 400);
    }
    api.send("POST", "/v1/embeddings", &[("content-type", "application/json")], CANARY.as_bytes()).json();
    api.get(&format!("/{CANARY}")).json();
    assert!(server.log().len() > 100 && server.stop().success());
    assert!(log(&home).iter().any(|(_, words)| words.contains(CANARY)), "the owner can read it");
    let mut hits = Vec::new();
    search(home.folder.path(), &forms(), &mut hits);
    assert!(hits.is_empty(), "{hits:?}");
    search(outside.path(), &forms(), &mut hits);
    assert!(!hits.is_empty(), "the search finds what is there");
}

/// Posts jobs until the server is gone; the jobs that were answered.
fn post_jobs(server: &Server, answered: &Mutex<HashSet<u64>>) {
    let target = server.api();
    let post = || {
        let body = json!({"model": "tiny-bert", "input": "a"}).to_string();
        let mut stream = target.try_connect()?;
        let head = format!(
            "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let job = answer.lines().find_map(|line| line.strip_prefix("ringfence-job: "))?;
        answer.starts_with("HTTP/1.1 200").then(|| job.trim().parse::<u64>().unwrap())
    };
    while let Some(job) = post() {
        answered.lock().unwrap().insert(job);
    }
}

#[test]
fn a_killed_server_has_every_answered_job_and_grant_in_its_log() {
    let home = Home::with_tiny();
    let folder = notes(&home, "a.md", NOTE);
    let mut jobs = 0;
    for round in 0..rounds("RINGFENCE_AUDIT_KILLS", 3) {
        let mut server = home.start();
        let run = server.status()["run_id"].as_str().unwrap().to_owned();
        let (answered, asked) = (Mutex::new(HashSet::new()), Mutex::new(HashSet::new()));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| post_jobs(&server, &answered));
            }
            for _ in 0..3 {
                let grant = server.api().post("/grants", &question(&folder, "to find passages"));
                if grant.status == 202 {
                    asked.lock().unwrap().insert(grant.json()["grant"].as_u64().unwrap());
                }
            }
            std::thread::sleep(Duration::from_millis(150 + 37 * (round as u64 % 7)));
            let pid = rustix::process::Pid::from_child(&server.child);
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        });
        drop(server.child.wait());
        let found = log(&home);
        let numbers = |kind: &str, field: &str| -> HashSet<u64> {
            let own = |entry: &&(Value, String)| entry.0["kind"] == kind && entry.0["run"] == run.as_str();
            found.iter().filter(own).filter_map(|(entry, _)| entry[field].as_u64()).collect()
        };
        let (answered, asked) = (answered.into_inner().unwrap(), asked.into_inner().unwrap());
        let lost: Vec<_> = answered.difference(&numbers("job_ended", "job")).copied().collect();
        assert!(lost.is_empty(), "round {round}: {lost:?}: answered jobs that the log does not have");
        let lost: Vec<_> = asked.difference(&numbers("grant_requested", "grant")).copied().collect();
        assert!(lost.is_empty(), "round {round}: {lost:?}: grants that the log does not have");
        assert_eq!(asked.len(), 3, "round {round}");
        jobs += answered.len();
    }
    assert!(jobs > 0);
    println!("{jobs} answered jobs, none lost");
    assert!(home.start().stop().success());
    home.cli_ok(&["audit", "verify"]);
}

/// A small disk where the home has its log; gone at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(home: &Home) -> Option<Self> {
        let folder = home.path().join("audit");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=200k,mode=700,uid=65534,gid=65534", "tmpfs"])
            .arg(&folder)
            .output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }

    fn remount(&self, size: &str) {
        let status =
            Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

#[test]
fn on_a_full_disk_nothing_is_answered_as_done_and_a_restart_with_room_goes_on() {
    let home = Home::with_tiny();
    let disk = rustix::process::getuid().is_root().then(|| SmallDisk::mount(&home)).flatten();
    let Some(disk) = disk else {
        eprintln!("skipped: a small disk is mounted by root only");
        return;
    };
    let server = home.start();
    let mut answered = Vec::new();
    let refused = loop {
        let answer = server.api().embed(&json!({"model": "tiny-bert", "input": "a"}));
        if answer.status != 200 {
            break answer;
        }
        answered.push(answer.header("ringfence-job").unwrap().parse::<u64>().unwrap());
        assert!(answered.len() < 5_000, "200 KiB take no more entries than that");
    };
    assert_eq!((refused.status, refused.code().as_str()), (503, "audit_unavailable"));
    let health = server.api().get("/health");
    assert_eq!((health.status, &health.json()["code"]), (503, &"audit_unavailable".into()));
    assert!(server.status()["audit"]["failure"].is_string());
    let folder = notes(&home, "a.md", NOTE);
    assert_eq!(server.api().post("/grants", &question(&folder, "why not")).code(), "audit_unavailable");
    assert_eq!(server.admin().post("/clients", &json!({"name": "anna"})).code(), "audit_unavailable");
    assert_eq!(server.admin().post("/keys", &json!({"client": "anna"})).code(), "audit_unavailable");
    assert!(server.admin().get("/clients").ok()["clients"].as_array().unwrap().is_empty());
    assert!(server.stop().success());

    match home.try_start() {
        Ok(server) => drop(server),
        Err(log) => assert!(log.contains("audit"), "{log}"),
    }
    disk.remount("4m");
    let server = home.start();
    server.api().embed(&json!({"model": "tiny-bert", "input": "a"})).ok();
    assert_eq!(server.api().get("/health").status, 200);
    assert!(server.stop().success());
    home.cli_ok(&["audit", "verify"]);
    let found: HashSet<u64> =
        of_kind(&home, "job_ended").iter().filter_map(|(entry, _)| entry["job"].as_u64()).collect();
    assert!(answered.iter().all(|job| found.contains(job)), "an answered job is not in the log");
}

/// A folder that the server's user can write in.
fn folder_of_the_server(home: &Home, name: &str) -> PathBuf {
    let folder = home.folder.path().join(name);
    fs::create_dir_all(&folder).unwrap();
    if rustix::process::getuid().is_root() {
        chown(&folder, Some(65_534), Some(65_534)).unwrap();
    }
    folder
}

fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_second_place_has_each_checkpoint_and_shows_a_log_that_was_put_back() {
    let mut home = Home::with_tiny();
    let second = folder_of_the_server(&home, "second");
    home.set_options(&["--audit-second", second.to_str().unwrap()]);
    let (audit, kept) = (home.path().join("audit/log"), home.folder.path().join("kept"));
    assert!(home.start().stop().success());
    let checkpoint = || fs::read(audit.join("checkpoint")).unwrap();
    let in_second = || {
        let files: Vec<_> = fs::read_dir(&second).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        fs::read(&files[0]).unwrap()
    };
    assert_eq!(in_second(), checkpoint());
    fs::create_dir(&kept).unwrap();
    copy_files(&audit, &kept);

    let server = home.start();
    server.api().embed(&json!({"model": "tiny-bert", "input": "a"})).ok();
    assert!(server.stop().success());
    assert_eq!(in_second(), checkpoint());
    copy_files(&kept, &audit);
    let error = home.try_start().err().unwrap();
    assert!(error.contains("second place"), "{error}");
}

#[test]
fn a_second_place_that_goes_away_is_said_and_the_log_goes_on() {
    let mut home = Home::with_tiny();
    let second = folder_of_the_server(&home, "second");
    home.set_options(&["--audit-second", second.to_str().unwrap()]);
    let server = home.start();
    fs::remove_dir_all(&second).unwrap();
    server.await_status("the second place's failure", |status| {
        server.api().embed(&json!({"model": "tiny-bert", "input": "a"})).ok();
        status["audit"]["second_failure"].is_string()
    });
    assert_eq!(server.api().get("/health").status, 200);
    assert!(server.log().contains("second place"));
    let found: Value =
        serde_json::from_str(&String::from_utf8(home.cli(&["doctor", "--json"]).stdout).unwrap()).unwrap();
    let about_log = |finding: &&Value| finding["area"] == "server" && finding["name"] == "audit log";
    let finding = found["findings"].as_array().unwrap().iter().find(about_log).unwrap();
    assert_eq!(finding["answer"], "absent", "{finding}");
    assert!(server.stop().success());
    let error = home.try_start().err().unwrap();
    assert!(error.contains("--audit-second"), "{error}");
}

#[test]
fn entries_that_are_older_than_the_operator_keeps_them_are_pruned_at_the_start() {
    let mut home = Home::with_tiny();
    let folder = folder_of_the_server(&home, "home/audit");
    {
        let mut files = Folder::open(&folder).unwrap();
        let keys = Keys::read_or_make(&mut files, &[7; KEYS_BYTES]).unwrap();
        let (mut log, _) = Log::open(files, keys, None).unwrap();
        for time_ms in 0..600 {
            let path = log.mask(&format!("/home/anna/{time_ms}.txt"));
            let used = Event::GrantUsed { grant: 1, path };
            log.append(Entry::of_server(time_ms, Word::lossy("r"), used)).unwrap();
        }
        log.commit().unwrap();
        log.checkpoint().unwrap();
    }
    if rustix::process::getuid().is_root() {
        let owner = Command::new("chown").args(["-R", "65534:65534"]).arg(&folder).status();
        assert!(owner.unwrap().success());
    }
    home.set_options(&["--audit-keep-days", "30"]);
    assert!(home.start().stop().success());
    let pruned = of_kind(&home, "pruned");
    assert_eq!(pruned.len(), 1);
    assert_eq!(pruned[0].0["before"], 512);
    let verified = home.cli_ok(&["audit", "verify"]);
    assert!(verified.contains("512 of them pruned, hashes hold"), "{verified}");
}

#[test]
fn a_worker_that_dies_by_itself_has_an_entry() {
    let home = Home::with_tiny();
    let server = home.start();
    server.api().embed(&json!({"model": "tiny-bert", "input": "a"})).ok();
    let pid = rustix::process::Pid::from_raw(server.worker_pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let died = await_kind(&home, "worker_died", 1);
    assert_eq!((&died[0].0["model"], &died[0].0["reason"]), (&"tiny-bert".into(), &"signal_9".into()));
    assert!(died[0].1.contains("died: signal_9"), "{}", died[0].1);
}

#[test]
fn a_log_that_is_locked_damaged_or_without_its_keys_refuses_the_start() {
    let home = Home::with_tiny();
    assert!(home.start().stop().success());
    let audit = home.path().join("audit");
    {
        let lock = fs::File::open(audit.join("lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let error = home.try_start().err().unwrap();
        assert!(error.contains("open elsewhere"), "{error}");
    }
    assert!(home.start().stop().success());
    for (file, words) in
        [("log/pending", "does not hold"), ("log/checkpoint", "does not hold"), ("keys/audit", "keys")]
    {
        let path = audit.join(file);
        let kept = fs::read(&path).unwrap();
        let mut changed = kept.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        if file.starts_with("keys") {
            fs::remove_file(&path).unwrap();
        } else {
            fs::write(&path, &changed).unwrap();
        }
        let error = home.try_start().err().unwrap_or_else(|| panic!("{file}: the server started"));
        assert!(error.contains(words), "{file}: {error}");
        fs::write(&path, &kept).unwrap();
        if rustix::process::getuid().is_root() {
            chown(&path, Some(65_534), Some(65_534)).unwrap();
        }
    }
    assert!(home.start().stop().success());
    home.cli_ok(&["audit", "verify"]);
}
