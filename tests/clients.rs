//! Removing a client: its socket, keys, grants, jobs and connections end with the answer, and its name can be had again.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can not go on fails, and waits by the clock"
)]

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::{Answer, Home, Server, Target};

const NOTE: &str = "the cat sat on the mat";

/// A home with a client `notes`, a key of it, and a folder that it may read without a question.
struct Ground {
    home: Home,
    key: String,
    folder: PathBuf,
}

impl Ground {
    fn new() -> (Self, Server) {
        let home = Home::with_tiny();
        let folder = home.folder.path().join("notes");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.md"), NOTE).unwrap();
        let rules = home.path().join("grants.toml");
        let rule = "[[rule]]\nclient = \"notes\"\nkind = \"file_read\"\ndecision = \"allow\"\nuntil = 2100-01-01\nbelow = ";
        fs::write(&rules, format!("{rule}\"{}\"\n", folder.display())).unwrap();
        for path in [&folder, &folder.join("a.md"), &rules] {
            if rustix::process::getuid().is_root() {
                chown(path, Some(65_534), Some(65_534)).unwrap();
            }
        }
        let server = home.start();
        home.cli_ok(&["client", "add", "notes"]);
        let key = home.cli_ok(&["key", "add", "notes"]).trim().to_owned();
        (Self { home, key, folder }, server)
    }

    fn grant(&self, server: &Server) -> (u64, String) {
        let body = json!({"kind": "file_read", "path": self.folder, "model": "tiny-bert", "reason": "to find passages",
                          "results": "shown to the asker", "lifetime_ms": 600_000, "bytes_max": 1_000_000});
        let grant = server.client("notes").post("/grants", &body).ok()["grant"].as_u64().unwrap();
        let claimed = server.client("notes").post(&format!("/grants/{grant}/claim"), &json!({})).ok();
        (grant, claimed["capability"].as_str().unwrap().to_owned())
    }

    fn with_key(&self, server: &Server, method: &str, path: &str, body: &Value) -> Answer {
        let authorization = format!("Bearer {}", self.key);
        let headers = [("authorization", authorization.as_str()), ("content-type", "application/json")];
        server.tcp().send(method, path, &headers, body.to_string().as_bytes())
    }
}

fn read(target: &Target, capability: &str) -> Answer {
    target.embed(
        &json!({"model": "tiny-bert", "input": {"grant": capability, "path": "a.md"}, "truncate": true}),
    )
}

fn remove(server: &Server, name: &str) -> Answer {
    server.admin().send("DELETE", &format!("/clients/{name}"), &[], b"")
}

#[test]
fn a_removed_client_is_gone_with_the_answer_and_its_name_can_be_had_again() {
    let (ground, server) = Ground::new();
    let (grant, capability) = ground.grant(&server);
    assert_eq!(read(&server.client("notes"), &capability).status, 200);
    let plain = json!({"model": "tiny-bert", "input": NOTE});
    assert_eq!(ground.with_key(&server, "POST", "/v1/embeddings", &plain).status, 200);
    let mut open = server.client("notes").connect();
    let ask = "GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n";
    open.write_all(ask.as_bytes()).unwrap();
    assert!(open.read(&mut [0; 4096]).unwrap() > 0);

    let page = ground.home.cli_ok(&["client", "remove", "notes"]);
    assert_eq!(page, "client notes is removed; 1 of its keys are revoked, 1 of its grants ended\n");

    assert!(!ground.home.path().join("clients/notes").exists());
    assert_eq!(server.admin().get("/clients").ok()["clients"], json!([]));
    assert_eq!(server.status()["grants"], json!({"open": 0, "file_services": 0}));
    let refused = ground.with_key(&server, "POST", "/v1/embeddings", &plain);
    assert_eq!((refused.status, refused.code()), (401, "key_invalid".to_owned()));
    assert_eq!(server.admin().get(&format!("/grants/{grant}")).ok()["state"], "revoked");
    // The connection from before is closed, whatever is asked on it.
    drop(open.write_all(ask.as_bytes()));
    assert!(matches!(open.read(&mut [0; 4096]), Ok(0) | Err(_)));
    assert_eq!(
        (remove(&server, "notes").status, remove(&server, "notes").code()),
        (404, "client_unknown".to_owned())
    );

    ground.home.cli_ok(&["client", "add", "notes"]);
    assert_eq!(server.client("notes").embed(&plain).status, 200);
    assert_eq!(read(&server.client("notes"), &capability).code(), "grant_revoked");
    assert_eq!(
        ground.with_key(&server, "POST", "/v1/embeddings", &plain).code(),
        "key_invalid",
        "it stays so"
    );
    let (_, again) = ground.grant(&server);
    assert_eq!(read(&server.client("notes"), &again).status, 200);
    assert_eq!(remove(&server, "notes").ok(), json!({"name": "notes", "keys_revoked": 0, "grants_ended": 1}));
}

#[test]
fn what_a_removed_client_waits_for_is_given_up() {
    let (ground, server) = Ground::new();
    ground.grant(&server);
    assert_eq!(server.client("notes").embed(&json!({"model": "tiny-bert", "input": NOTE})).status, 200);
    // A stopped worker answers nobody.
    let worker = rustix::process::Pid::from_raw(server.worker_pid()).unwrap();
    rustix::process::kill_process(worker, rustix::process::Signal::STOP).unwrap();
    let ask = json!({"model": "tiny-bert", "input": vec![NOTE; 64]});
    let running = |status: &Value| {
        let models = status["models"].as_array().unwrap();
        models
            .iter()
            .map(|model| model["queued"].as_u64().unwrap() + model["running"].as_u64().unwrap())
            .sum::<u64>()
    };
    std::thread::scope(|scope| {
        let by_key = scope.spawn(|| ground.with_key(&server, "POST", "/v1/embeddings", &ask));
        let mut on_socket = server.client("notes").connect();
        let body = ask.to_string();
        let head = format!(
            "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        on_socket.write_all((head + &body).as_bytes()).unwrap();
        // Nothing of this body is there yet, though its key was looked at.
        let mut slow = server.tcp().connect();
        let head = format!(
            "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            ground.key,
            body.len()
        );
        slow.write_all(head.as_bytes()).unwrap();
        server.await_status("two jobs", |status| running(status) == 2);

        let begun = Instant::now();
        assert_eq!(remove(&server, "notes").status, 200);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(running(&server.status()), 0, "{:#}", server.status());
        assert_eq!(by_key.join().unwrap().code(), "client_removed");
        // It may still hear why, before its connection is closed.
        let mut rest = Vec::new();
        drop(on_socket.read_to_end(&mut rest));
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.is_empty() || rest.contains("client_removed"), "{rest}");
        drop(slow.write_all(body.as_bytes()));
        assert_eq!(support::read_answer(&mut *slow).code(), "client_removed");
    });
    rustix::process::kill_process(worker, rustix::process::Signal::CONT).unwrap();
}

#[test]
fn only_those_that_were_added_can_be_removed() {
    let (ground, server) = Ground::new();
    for (name, status, code) in [
        ("system", 409, "client_built_in"),
        ("uid:0", 409, "client_built_in"),
        ("nobody", 404, "client_unknown"),
        ("NOTES", 400, "client_name_invalid"),
        ("..", 400, "client_name_invalid"),
    ] {
        let answer = remove(&server, name);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{name}");
    }
    let answer = server.client("notes").send("DELETE", "/clients/notes", &[], b"");
    assert_eq!((answer.status, answer.code()), (403, "admin_only".to_owned()));
    let output = ground.home.cli(&["client", "remove", "nobody", "--json"]);
    assert_eq!(output.status.code(), Some(5));
    // A folder that somebody else has put something into stays, and says so; without that it is removed after all.
    let strange = ground.home.path().join("clients/notes/strange");
    fs::write(&strange, "x").unwrap();
    assert_eq!(remove(&server, "notes").status, 500);
    fs::remove_file(&strange).unwrap();
    assert_eq!(remove(&server, "notes").status, 200);
}
