//! Keys, trust, quotas and the server of a home.

use super::Finding;
use crate::commands::DAY_SECONDS;
use crate::commands::model::trusted::Trusted;
use crate::error::CliError;
use crate::home::Home;
use crate::http::{Address, Ask, ask_once};
use crate::operator::Config;
use crate::output::utc;
use crate::trust::Installed;
use hyper::Method;
use ringfence_audit::{Folder, Keys, newest_checkpoint};
use ringfence_models::{PackageName, TrustedKey};
use ringfence_scheduler::quotas::Quotas;
use serde_json::Value;

/// A key or trust file that ends so soon is worth a word.
const SOON_SECONDS: u64 = 30 * DAY_SECONDS;

/// The files of the home.
pub(super) fn files(home: &Home, config: &Config, now: u64) -> Vec<Finding> {
    let path = home.path().display().to_string();
    if !home.path().is_dir() {
        let advice = "ringfence init, or name another folder with --home";
        return vec![Finding::no("home", "home", format!("{path} is not there"), advice)];
    }
    let mut findings = vec![Finding::yes("home", "home", path), trust(home, config, now)];
    findings.extend(packages(home, config));
    findings.push(quotas(home));
    findings.push(audit(home));
    findings
}

fn trust(home: &Home, config: &Config, now: u64) -> Finding {
    const NAME: &str = "trust";
    let installed = match Installed::compared(home, config) {
        Ok(installed) => installed,
        Err(error) => {
            return Finding::no("home", NAME, error.to_string(), advice(&error, "ringfence trust show"));
        }
    };
    let trust = &installed.trust;
    let counts = |key: &&TrustedKey| {
        key.not_before <= now && now < key.not_after && !trust.revoked_keys.contains(&key.public.id())
    };
    let keys = trust.keys.iter().filter(counts).count();
    let found = format!("version {}, {keys} keys count, until {}", trust.version, utc(trust.expires));
    match trust.expires.saturating_sub(now) {
        0 => Finding::no("home", NAME, format!("expired {}", utc(trust.expires)), "ringfence trust renew"),
        _ if keys == 0 => Finding::no("home", NAME, found, "no model can be loaded: ringfence trust key add"),
        left if left < SOON_SECONDS => {
            Finding::absent("home", NAME, found, "it ends soon: ringfence trust renew")
        }
        _ => Finding::yes("home", NAME, found),
    }
}

/// Every file of every package is read and compared with what was signed.
fn packages(home: &Home, config: &Config) -> Vec<Finding> {
    const NAME: &str = "models";
    let trusted = match Trusted::open_with(home, config) {
        Ok(trusted) => trusted,
        // What is wrong with the trust file is a finding of its own.
        Err(error) => return vec![Finding::no("home", NAME, error.to_string(), advice(&error, TRUST_FIRST))],
    };
    let names = match trusted.store.list() {
        Ok(names) => names,
        Err(error) => {
            let found = format!("{}: {}", error.what, error.source);
            return vec![Finding::no("home", NAME, found, "look as the home's owner or root")];
        }
    };
    let listed = names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let all = if names.is_empty() {
        Finding::absent("home", NAME, "none", "ringfence model add minilm")
    } else {
        Finding::yes("home", NAME, listed)
    };
    std::iter::once(all).chain(names.iter().map(|name| package(&trusted, name))).collect()
}

const TRUST_FIRST: &str = "no package can be judged before that is put right";

fn package(trusted: &Trusted, name: &PackageName) -> Finding {
    let finding = format!("package {name}");
    match trusted.verify(name) {
        Ok(verified) => {
            let found = format!(
                "holds: {} files, signer {}, digest {}",
                verified.files.len(),
                verified.signer,
                verified.digest
            );
            Finding::yes("home", finding, found)
        }
        Err(error) => {
            Finding::no("home", &finding, error.to_string(), advice(&error, "ringfence model verify"))
        }
    }
}

fn quotas(home: &Home) -> Finding {
    const NAME: &str = "quotas";
    let text = match std::fs::read_to_string(home.quotas()) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let advice = "defaults count; to be able to change them, make an empty quotas.toml that the server's user owns";
            return Finding::absent("home", NAME, "there is no quotas.toml", advice);
        }
        Err(error) => {
            return Finding::no("home", NAME, error.to_string(), "look as the home's owner or root");
        }
    };
    match Quotas::parse(&text) {
        Ok(_) => Finding::yes("home", NAME, "quotas.toml is legal"),
        Err(error) => {
            Finding::no("home", NAME, error.to_string(), "correct the line; ringfence quota check FILE")
        }
    }
}

/// What the log says itself; every entry is hashed by `ringfence audit verify` only.
fn audit(home: &Home) -> Finding {
    const NAME: &str = "audit log";
    let path = home.audit();
    let there = path.join("log").symlink_metadata().and_then(|_| Folder::open(&path));
    let newest = match there {
        Ok(files) => Keys::read(&files)
            .map_err(|error| error.to_string())
            .and_then(|keys| newest_checkpoint(&files, &keys.public()).map_err(|fault| fault.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Finding::absent("home", NAME, "there is none", "a server makes it: ringfence serve");
        }
        Err(error) => Err(error.to_string()),
    };
    match newest {
        Ok((_, checkpoint)) => Finding::yes("home", NAME, format!("{} entries are signed", checkpoint.size)),
        Err(why) => Finding::no("home", NAME, why, "ringfence audit verify, as the home's owner or root"),
    }
}

/// The server that runs in the home, if one does.
pub(super) fn server(home: &Home) -> Vec<Finding> {
    let status = match ask_once(&Address::Unix(home.admin_socket()), &Ask::plain(Method::GET, "/status")) {
        Ok(status) => status,
        Err(error) => {
            let advice = advice(&error, "ringfence serve");
            return vec![Finding::absent("server", "server", error.to_string(), advice)];
        }
    };
    let health = status["health"]["status"].as_str().unwrap_or("unknown");
    let version = status["version"].as_str().unwrap_or("unknown");
    let mut findings = vec![if health == "ok" {
        Finding::yes("server", "server", format!("version {version}, health {health}"))
    } else {
        Finding::no("server", "server", format!("health {health}"), "ringfence status, and the server's log")
    }];
    findings.push(sandbox(&status["sandbox"]));
    findings.push(audit_writing(&status["audit"]));
    findings.extend(status["models"].as_array().into_iter().flatten().map(model));
    findings
}

fn sandbox(sandbox: &Value) -> Finding {
    let count = |name: &str| sandbox[name].as_array().map_or(0, Vec::len);
    let (layers, probes) = (count("layers"), count("probes"));
    Finding::yes("server", "sandbox", format!("{layers} layers, {probes} forbidden acts tried and stopped"))
}

fn audit_writing(audit: &Value) -> Finding {
    const NAME: &str = "audit log";
    let found = format!("{} entries are durable", audit["entries"]);
    if let Some(why) = audit["failure"].as_str() {
        let advice = "nothing is granted, run or changed: mend the disk, then start the server again";
        return Finding::no("server", NAME, why, advice);
    }
    if let Some(why) = audit["second_failure"].as_str() {
        let advice = "checkpoints don't reach --audit-second: mend that folder";
        return Finding::absent("server", NAME, format!("{found}; second place: {why}"), advice);
    }
    if audit["names_left_out"].as_u64().unwrap_or(0) > 0 {
        let advice = "prune old entries: ringfence serve -- --audit-keep-days 90";
        return Finding::absent("server", NAME, format!("{found}; the map of names is full"), advice);
    }
    Finding::yes("server", NAME, found)
}

fn model(model: &Value) -> Finding {
    let name = model["name"].as_str().unwrap_or("?");
    let state = model["state"].as_str().unwrap_or("unknown");
    match model["reason"].as_str() {
        None => Finding::yes("server", format!("model {name}"), state.to_owned()),
        Some(why) => Finding::no(
            "server",
            &format!("model {name}"),
            format!("{state}: {why}"),
            format!("ringfence model show {name}"),
        ),
    }
}

fn advice(error: &CliError, otherwise: &str) -> String {
    let advice = error.advice();
    if advice.is_empty() { otherwise.to_owned() } else { advice }
}
