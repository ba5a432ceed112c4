//! `ringfence quota`, with a file in the home and with a server.

use crate::command_line::{ringfence, stderr, stdout};
use crate::server::{Reply, Server};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use tempfile::TempDir;

const TEXT: &str = "# ours\n[queues]\ntotal = 5 # few\n";

struct Case {
    home: TempDir,
    file: PathBuf,
}

impl Case {
    /// A home whose file is [`TEXT`], and a file beside it.
    fn new(text: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("quotas.toml"), TEXT).unwrap();
        let file = home.path().join("new.toml");
        fs::write(&file, text).unwrap();
        Self { home, file }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        ringfence(self.home.path(), &[&["quota"], arguments].concat())
    }

    fn with_file(&self, command: &str, more: &[&str]) -> Output {
        self.run(&[&[command, self.file.to_str().unwrap()], more].concat())
    }

    /// A server with this file, which answers a replacement with `put`.
    fn server(&self, put: Reply) -> Server {
        let shown = json!({"revision": "r1", "applied": "r1", "text": TEXT, "effective": [
            {"field": "queues.total", "value": 5, "unit": "jobs", "doc": "Jobs that wait in all."}]});
        Server::on_socket(&self.home.path().join("run/admin.sock"), Reply::json(200, &shown).then(put))
    }
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn replaced() -> Reply {
    let change = json!({"field": "queues.total", "from": 5, "to": 7});
    Reply::json(200, &json!({"revision": "r2", "changes": [change]}))
}

#[test]
fn a_legal_file_is_legal_and_a_wrong_one_is_refused_with_its_line() {
    let case = Case::new("[queues]\ntotal = 7\n");
    let output = case.with_file("check", &[]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    assert!(stdout(&output).ends_with("new.toml is legal\n"), "{}", stdout(&output));
    let case = Case::new("\n[clients.notes]\nweight = 0\n");
    for command in ["check", "diff", "apply"] {
        let output = case.with_file(command, &[]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        let said = stderr(&output);
        assert!(said.contains("line 3: clients.notes.weight is 0; it must be from 1 to 1000"), "{said}");
        let body = json_of(&case.with_file(command, &["--json"]));
        assert_eq!(body["error"]["code"], "quota_invalid");
    }
    let output = ringfence(Path::new("/nowhere"), &["quota", "check", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn without_a_server_the_file_of_the_home_is_shown() {
    let case = Case::new("[queues]\ntotal = 7\n[clients.notes]\n");
    let output = case.run(&["show"]);
    assert_eq!(stdout(&output), TEXT);
    assert!(stderr(&output).contains("no server runs here"), "{}", stderr(&output));
    let output = case.run(&["show", "--effective"]);
    let line = |field: &str| {
        let lines = stdout(&output).lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.filter(|line| line.first() == Some(&field)).flatten().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("queues.total"), ["queues.total", "5", "jobs"]);
    assert_eq!(line("models.default.concurrency"), ["models.default.concurrency", "64", "jobs"]);
    let body = json_of(&case.run(&["show", "--json"]));
    assert_eq!((&body["from"], &body["text"]), (&json!("file"), &json!(TEXT)));
    let output = case.with_file("diff", &[]);
    assert_eq!(stdout(&output), "FIELD         FROM  TO\nqueues.total  5     7\n");
    // A change that was cut off counts from the server's next start.
    fs::create_dir(case.home.path().join("run")).unwrap();
    fs::write(case.home.path().join("run/quotas.next"), "[queues]\ntotal = 7\n").unwrap();
    assert_eq!(stdout(&case.with_file("diff", &[])), "no value that counts changes\n");
}

#[test]
fn without_a_file_or_with_a_wrong_one_the_command_says_so() {
    let case = Case::new("");
    fs::write(case.home.path().join("quotas.toml"), "x").unwrap();
    assert_eq!(stdout(&case.run(&["show"])), "x\n");
    let output = case.run(&["show", "--effective"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("quotas.toml: line 1"), "{}", stderr(&output));
    fs::remove_file(case.home.path().join("quotas.toml")).unwrap();
    let output = case.run(&["show"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("ringfence init makes it"), "{}", stderr(&output));
}

#[test]
fn a_servers_quotas_are_shown_as_it_says() {
    let case = Case::new("[queues]\ntotal = 7\n");
    let server = case.server(replaced());
    assert_eq!(stdout(&case.run(&["show"])), TEXT);
    assert_eq!(server.asked()[0].line, "GET /quotas");
    let server = {
        drop(server);
        fs::remove_file(case.home.path().join("run/admin.sock")).unwrap();
        case.server(replaced())
    };
    let output = case.run(&["show", "--effective"]);
    assert_eq!(stdout(&output), "FIELD         VALUE  UNIT\nqueues.total  5      jobs\n");
    assert_eq!((stderr(&output), server.asked().len()), ("", 1));
}

#[test]
fn a_value_is_set_in_the_servers_file_if_nobody_has_changed_it_since() {
    let case = Case::new("");
    let server = case.server(replaced());
    let output = case.run(&["set", "queues.total=7", "clients.notes.class=batch"]);
    assert_eq!(stdout(&output), "FIELD         FROM  TO\nqueues.total  5     7\n", "{}", stderr(&output));
    let asked = server.asked();
    assert_eq!((asked[0].line.as_str(), asked[1].line.as_str()), ("GET /quotas", "PUT /quotas"));
    assert_eq!(
        (&asked[1].headers["if-match"], &asked[1].headers["content-type"]),
        (&"\"r1\"".parse().unwrap(), &"application/toml".parse().unwrap())
    );
    let expected = "# ours\n[queues]\ntotal = 7 # few\n\n[clients.notes]\nclass = \"batch\"\n";
    assert_eq!(asked[1].text, expected);
}

#[test]
fn a_change_that_the_server_refuses_ends_with_5() {
    let case = Case::new("");
    let body = json!({"error": {"message": "quotas.toml is another one by now", "code": "quota_changed"}});
    let _server = case.server(Reply::json(412, &body));
    let output = case.run(&["set", "queues.total=7", "--json"]);
    assert_eq!(
        (output.status.code(), &json_of(&output)["error"]["code"]),
        (Some(5), &json!("quota_changed"))
    );
}

#[test]
fn a_file_is_applied_as_it_is() {
    let case = Case::new("# new\n[queues]\ntotal = 7\n");
    let server = Server::on_socket(&case.home.path().join("run/admin.sock"), replaced());
    let output = case.with_file("apply", &["--json"]);
    assert_eq!(json_of(&output)["revision"], "r2");
    let asked = &server.asked()[0];
    assert_eq!((asked.line.as_str(), asked.text.as_str()), ("PUT /quotas", "# new\n[queues]\ntotal = 7\n"));
    assert!(asked.headers.get("if-match").is_none());
}
