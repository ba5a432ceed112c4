//! The HTTP client.

use crate::server::{Reply, Server};
use hyper::Method;
use ringfence_cli::error::CliError;
use ringfence_cli::http::{ANSWER_BYTES_MAX, Address, ApiKey, Ask, Connection, ask_once, runtime};
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

fn get(path: &str) -> Ask {
    Ask::plain(Method::GET, path)
}

#[test]
fn a_connection_is_kept_for_the_next_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let server = Server::on_socket(&path, Reply::json(200, &json!({"ok": true})));
    runtime().unwrap().block_on(async {
        let mut connection = Connection::open(&Address::Unix(path)).await.unwrap();
        for _ in 0..3 {
            assert_eq!(connection.send(&get("/health")).await.unwrap().json().unwrap(), json!({"ok": true}));
        }
    });
    assert_eq!((server.asked().len(), server.connections()), (3, 1));
    assert_eq!(server.asked()[0].headers["host"], "localhost");
}

#[test]
fn a_connection_that_the_server_closed_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let server = Server::on_socket(&path, Reply::json(200, &json!({})).header("connection", "close"));
    runtime().unwrap().block_on(async {
        let mut connection = Connection::open(&Address::Unix(path)).await.unwrap();
        for _ in 0..3 {
            connection.send(&get("/health")).await.unwrap();
        }
    });
    assert_eq!(server.connections(), 3);
}

#[test]
fn a_path_longer_than_a_socket_address_is_reached() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f".repeat(150)).join("clients/notes/api.sock");
    let _server = Server::on_socket(&path, Reply::json(200, &json!({"long": true})));
    assert_eq!(ask_once(&Address::Unix(path), &get("/")).unwrap(), json!({"long": true}));
}

#[test]
fn the_key_and_the_port_go_along_over_tcp() {
    let (server, authority) = Server::on_tcp(Reply::json(200, &json!({})));
    let address =
        Address::from_url(&format!("http://{authority}"), Some(ApiKey::new("rf_secret\n"))).unwrap();
    ask_once(&address, &Ask::post("/v1/embeddings", &json!({"input": "text"}))).unwrap();
    let asked = &server.asked()[0];
    assert_eq!(asked.line, "POST /v1/embeddings");
    assert_eq!(asked.headers["authorization"], "Bearer rf_secret");
    assert_eq!(asked.headers["content-type"], "application/json");
    assert_eq!(asked.headers["host"], authority.as_str());
    assert_eq!(asked.body, json!({"input": "text"}));
}

#[test]
fn a_refusal_keeps_the_servers_code_words_and_time() {
    let body =
        json!({"error": {"message": "the queue is full", "type": "rate_limit_error", "code": "queue_full"}});
    let (_server, authority) = Server::on_tcp(Reply::json(429, &body).header("retry-after-ms", "250"));
    match ask_once(&Address::Tcp { authority, key: None }, &get("/v1/models")) {
        Err(CliError::Refused { request, status, code, message, retry_after_ms, rung: None }) => {
            assert_eq!((request.as_str(), status, retry_after_ms), ("GET /v1/models", 429, Some(250)));
            assert_eq!((code.as_str(), message.as_str()), ("queue_full", "the queue is full"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_refusal_that_is_not_ours_is_named_by_its_status() {
    let reply = Reply { body: b"<h1>Bad gateway</h1>".to_vec(), ..Reply::json(502, &json!({})) };
    let (_server, authority) = Server::on_tcp(reply);
    let error = ask_once(&Address::Tcp { authority, key: None }, &get("/")).unwrap_err();
    assert_eq!(error.code(), "http_502");
}

#[test]
fn an_answer_without_end_is_not_read() {
    let reply = Reply { body: vec![b' '; ANSWER_BYTES_MAX + 1], ..Reply::json(200, &json!({})) };
    let (_server, authority) = Server::on_tcp(reply);
    let error = ask_once(&Address::Tcp { authority, key: None }, &get("/")).unwrap_err();
    assert!(matches!(error, CliError::Answer { .. }), "{error:?}");
}

#[test]
fn an_answer_that_is_cut_off_or_not_json_is_an_error_and_not_an_answer() {
    let check = |raw: &'static [u8]| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert_ne!(stream.read(&mut [0; 1024]).unwrap(), 0);
            stream.write_all(raw).unwrap();
        });
        let error = ask_once(&Address::Unix(path), &get("/status")).unwrap_err();
        assert!(matches!(error, CliError::Answer { .. }), "{error:?}");
        server.join().unwrap();
    };
    check(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"half\":");
    check(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnope");
    check(b"HTTP/9.9 what\r\n\r\n");
    check(b"");
}

#[test]
fn nobody_there_is_unreachable() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let check = |address: Address| {
        let error = ask_once(&address, &get("/")).unwrap_err();
        assert!(matches!(error, CliError::Unreachable { .. }), "{error:?}");
    };
    check(Address::Unix(socket.clone()));
    drop(UnixListener::bind(&socket).unwrap());
    check(Address::Unix(socket));
    check(Address::Unix(folder.path().join("f".repeat(200)).join("api.sock")));
    check(Address::Tcp { authority: "127.0.0.1:1".to_owned(), key: None });
}
