//! What scenarios ask of the server, and what they look up about its processes.

use crate::clock;
use crate::error::CliError;
use crate::home::Home;
use crate::http::{Address, Ask, Connection};
use hyper::Method;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// How long the server may take until nothing waits or runs.
const IDLE_WAIT_MAX: Duration = Duration::from_secs(30);
/// How often we look.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Processes from a worker up to its server: the one that makes the namespaces and the first one in them are between.
const LINEAGE_MAX: usize = 8;
/// The name of a worker's process, as far as the kernel keeps it.
const WORKER_COMM: &str = "ringfence-worke";

/// The server under stress.
#[derive(Clone, Debug)]
pub struct Server {
    home: Home,
    admin: Address,
    /// The model that is asked.
    pub model: String,
    /// Tokens of each text that it is asked about.
    pub tokens: u32,
}

impl Server {
    /// The one of this home.
    pub fn new(home: &Home, model: &str, tokens: u32) -> Self {
        let admin = Address::Unix(home.admin_socket());
        Self { home: home.clone(), admin, model: model.to_owned(), tokens }
    }

    /// Asks on the operator's socket.
    ///
    /// # Errors
    /// Those of [`Connection`].
    pub async fn ask(&self, ask: &Ask) -> Result<Value, CliError> {
        Connection::open(&self.admin).await?.send(ask).await?.json()
    }

    /// The same server, asked for another model.
    pub fn with_model(&self, model: &str) -> Self {
        Self { model: model.to_owned(), ..self.clone() }
    }

    /// Asks for a text on the operator's socket.
    ///
    /// # Errors
    /// Those of [`Connection`].
    pub async fn text(&self, path: &str) -> Result<String, CliError> {
        let answer = Connection::open(&self.admin).await?.send(&Ask::plain(Method::GET, path)).await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// Asks a route that an older server may not have; none where it has not.
    ///
    /// # Errors
    /// Those of [`Connection`].
    pub async fn ask_if_there(&self, path: &str) -> Result<Option<Value>, CliError> {
        match self.ask(&Ask::plain(Method::GET, path)).await {
            Ok(answer) => Ok(Some(answer)),
            Err(CliError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `GET /status`.
    ///
    /// # Errors
    /// Those of [`Connection`].
    pub async fn status(&self) -> Result<Value, CliError> {
        self.ask(&Ask::plain(Method::GET, "/status")).await
    }

    /// A client's part of `GET /usage`; none where the server does not say.
    ///
    /// # Errors
    /// Those of [`Connection`].
    pub async fn usage_of(&self, client: &str) -> Result<Option<Value>, CliError> {
        let usage = self.ask_if_there("/usage").await?.unwrap_or_default();
        let clients = usage["clients"].as_array().into_iter().flatten();
        Ok(clients.into_iter().find(|usage| usage["client"] == client).cloned())
    }

    /// Where a client of this name is served; it is added if it is not there.
    ///
    /// # Errors
    /// Those of [`Connection`].
    pub async fn client(&self, name: &str) -> Result<Address, CliError> {
        match self.ask(&Ask::post("/clients", &json!({"name": name}))).await {
            Ok(_) => {}
            Err(CliError::Refused { code, .. }) if code == "client_exists" => {}
            Err(error) => return Err(error),
        }
        Ok(Address::Unix(self.home.client_socket(name)))
    }

    /// The pids of the model's workers that can serve.
    ///
    /// # Errors
    /// Those of [`Connection`].
    pub async fn ready_workers(&self) -> Result<Vec<Pid>, CliError> {
        let status = self.status().await?;
        let workers = status["workers"].as_array().into_iter().flatten();
        let ready =
            workers.filter(|worker| worker["model"] == self.model.as_str() && worker["state"] == "ready");
        Ok(ready.filter_map(|worker| pid(&worker["pid"])).collect())
    }

    /// Waits until no job of the model waits or runs; whether that came to be in time.
    ///
    /// # Errors
    /// Those of [`Connection`].
    pub async fn becomes_idle(&self) -> Result<bool, CliError> {
        let until = clock::now() + IDLE_WAIT_MAX;
        while clock::now() < until {
            if self.jobs().await? == 0 {
                return Ok(true);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(false)
    }

    /// Jobs of the model that wait or run.
    ///
    /// # Errors
    /// Those of [`Connection`].
    pub async fn jobs(&self) -> Result<u64, CliError> {
        let status = self.status().await?;
        let mut models = status["models"].as_array().into_iter().flatten();
        let model = models.find(|model| model["name"] == self.model.as_str());
        let count = |field: &str| model.map_or(0, |model| model[field].as_u64().unwrap_or(0));
        Ok(count("queued") + count("running"))
    }

    /// Removes a client, if it is there.
    ///
    /// # Errors
    /// Those of [`Connection`].
    pub async fn remove_client(&self, name: &str) -> Result<(), CliError> {
        match self.ask(&Ask::plain(Method::DELETE, format!("/clients/{name}"))).await {
            Err(CliError::Refused { code, .. }) if code == "client_unknown" => Ok(()),
            answered => answered.map(drop),
        }
    }

    /// Where the operator's rules about grants lie.
    pub fn grant_rules(&self) -> PathBuf {
        self.home.grant_rules()
    }

    /// The server's own process.
    ///
    /// # Errors
    /// Those of [`Connection`].
    pub async fn pid(&self) -> Result<Option<Pid>, CliError> {
        Ok(pid(&self.status().await?["pid"]))
    }

    /// A worker of the model that we may signal, or why there is none.
    ///
    /// # Errors
    /// Those of [`Connection`].
    pub async fn worker_to_signal(&self) -> Result<Result<Pid, String>, CliError> {
        let Some(worker) = self.ready_workers().await?.first().copied() else {
            return Ok(Err(format!("no worker of {} is ready", self.model)));
        };
        let server = self.pid().await?;
        // The status may be that of another machine or pid namespace: a stranger is never signalled.
        if server.is_none_or(|server| !lineage(worker).contains(&server)) {
            let worker = worker.as_raw_nonzero();
            return Ok(Err(format!("process {worker} does not descend from a server that we can see")));
        }
        Ok(match test_kill_process(worker) {
            Ok(()) => Ok(worker),
            Err(error) => Err(format!("no right to signal the worker {worker:?}: {error}")),
        })
    }

    /// Worker processes that are alive and that the server does not list: descendants of the server, and those `seen`.
    ///
    /// # Errors
    /// Those of [`Connection`].
    pub async fn orphans(&self, seen: &[Pid]) -> Result<Vec<Pid>, CliError> {
        let status = self.status().await?;
        let server = pid(&status["pid"]);
        let workers = || status["workers"].as_array().into_iter().flatten();
        let pids = workers().filter_map(|worker| pid(&worker["pid"]));
        // The processes that hold a worker's namespaces belong to it.
        let listed: Vec<Pid> = pids.flat_map(|pid| [vec![pid], lineage(pid)].concat()).collect();
        // One that has said no hello yet is listed without a pid, and is no orphan.
        let starting = workers().any(|worker| worker["pid"].is_null());
        let descends = |&pid: &Pid| server.is_some_and(|server| lineage(pid).contains(&server));
        let suspects = processes().into_iter().filter(|pid| !starting && is_worker(*pid)).filter(descends);
        let mut suspects: Vec<Pid> = suspects.chain(seen.iter().copied()).collect();
        suspects.sort_by_key(|pid| pid.as_raw_nonzero());
        suspects.dedup();
        suspects.retain(|&pid| is_worker(pid) && !listed.contains(&pid));
        Ok(suspects)
    }
}

/// Sends a signal to a worker that [`Server::worker_to_signal`] gave.
///
/// # Errors
/// [`CliError::Failed`] where it is not there any more, or not ours.
pub fn send_signal(worker: Pid, signal: Signal) -> Result<(), CliError> {
    kill_process(worker, signal).map_err(|source| CliError::io(format!("signal to {worker:?}"), source))
}

/// Resident memory of a process in bytes; none where it can't be read.
pub fn resident_bytes(pid: Pid) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Open descriptors of a process; none where they can't be seen.
pub fn descriptors(pid: Pid) -> Option<usize> {
    fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).ok().map(Iterator::count)
}

/// Who runs a process.
pub fn uid_of(pid: Pid) -> Option<u32> {
    fs::metadata(format!("/proc/{}", pid.as_raw_nonzero())).ok().map(|entry| entry.uid())
}

/// Every process that descends from this one and is no zombie.
pub fn descendants(of: Pid) -> Vec<Pid> {
    let all: Vec<(Pid, Pid)> = processes()
        .into_iter()
        .filter(|pid| is_alive(*pid))
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut found = vec![of];
    let mut at = 0;
    while let Some(above) = found.get(at).copied() {
        found.extend(all.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

/// Whether it is there and no zombie.
pub fn is_alive(pid: Pid) -> bool {
    stat(pid).is_some_and(|(_, state, _)| state != 'Z' && state != 'X')
}

/// Whether it is there, a worker, and no zombie.
pub fn is_worker(pid: Pid) -> bool {
    stat(pid).is_some_and(|(comm, state, _)| comm == WORKER_COMM && state != 'Z' && state != 'X')
}

/// A process's worker processes above it, and the first one that is none: the server of a worker.
pub fn lineage(process: Pid) -> Vec<Pid> {
    let mut above: Vec<Pid> = Vec::new();
    while above.len() < LINEAGE_MAX
        && let Some(next) = parent(above.last().copied().unwrap_or(process))
    {
        above.push(next);
        if !is_worker(next) {
            break;
        }
    }
    above
}

fn parent(process: Pid) -> Option<Pid> {
    stat(process).and_then(|(_, _, parent)| Pid::from_raw(parent))
}

/// Name, state and parent of a process (proc_pid_stat(5)).
fn stat(pid: Pid) -> Option<(String, char, i32)> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (head, rest) = text.rsplit_once(") ")?;
    let comm = head.split_once('(')?.1.to_owned();
    let mut fields = rest.split(' ');
    Some((comm, fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn processes() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn pid(value: &Value) -> Option<Pid> {
    value.as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|&pid| pid > 1).and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_memory_and_a_parent_and_is_no_worker() {
        let own = rustix::process::getpid();
        assert!(resident_bytes(own).unwrap() > 100 * 1024);
        assert_eq!(parent(own), rustix::process::getppid());
        assert_eq!(lineage(own), [rustix::process::getppid().unwrap()]);
        assert!(!is_worker(own) && processes().contains(&own));
        assert!(descendants(rustix::process::getppid().unwrap()).contains(&own));
        assert!(descriptors(own).unwrap() > 2);
        assert_eq!(uid_of(own), Some(rustix::process::getuid().as_raw()));
    }

    #[test]
    fn no_answer_leads_to_a_signal_to_a_group_or_to_init() {
        for wrong in [json!(null), json!(0), json!(1), json!(-5), json!(4_294_967_298_u64), json!("7")] {
            assert_eq!(pid(&wrong), None, "{wrong}");
        }
        assert!(pid(&json!(2)).is_some());
    }
}
