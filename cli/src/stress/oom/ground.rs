//! What all paths stand on: the model on its device, measured; the jobs that are sent; quotas that are set and put back.

use super::stop::{Stop, counted};
use super::{Device, failed};
use crate::bench::words;
use crate::clock;
use crate::error::CliError;
use crate::http::{Address, Ask, Connection};
use crate::stress::Extent;
use crate::stress::load::{self, Ending, Job, Running, Traffic};
use crate::stress::quotas::{self, Original};
use crate::stress::server::Server;
use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Memory of a GPU that is given to workers where the operator gave none, in MiB.
const GPU_MIB: u64 = 4_096;
/// The lease of the host's memory of a worker on a GPU, in MiB.
pub(super) const HOST_MIB: u64 = 256;
/// How long an answer may take to come back after a stop.
const RECOVERY_WAIT_MAX: Duration = Duration::from_secs(60);
/// How often it is asked for.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// How long a worker may take to become ready.
const READY_WAIT_MAX: Duration = Duration::from_secs(60);
/// Connections of those who do nothing wrong, and the texts in each of their jobs.
pub(super) const OTHERS: usize = 2;
const OTHERS_TEXTS: u32 = 1;

const MIB: u64 = 1 << 20;

/// What paths stand on.
pub(super) struct Ground<'a> {
    pub(super) server: &'a Server,
    pub(super) device: Device,
    /// The name of the device in `quotas.toml`.
    pub(super) place: String,
    pub(super) extent: Extent,
    original: &'a Original,
    /// What counts for the model where a path changes nothing.
    base: Vec<String>,
    /// Where the jobs come from that want too much.
    pub(super) greedy: Address,
    /// A job that is answered wherever the model is well.
    probe: Job,
    /// A model beside the one under stress, for those who do nothing wrong while that one can't answer.
    other: Option<Server>,
    pub(super) measured: Measured,
}

/// The model as it was found, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    /// A worker's lease where nobody says another.
    pub(super) lease: u64,
    /// What a worker takes of it before any job.
    pub(super) used: u64,
    /// What each token of a step takes at most.
    pub(super) per_token: u64,
    /// What the device has for all leases.
    pub(super) budget: u64,
}

impl<'a> Ground<'a> {
    /// Puts the model on the device and measures it.
    pub(super) async fn prepare(
        server: &'a Server,
        device: Device,
        extent: Extent,
        original: &'a Original,
    ) -> Result<Ground<'a>, CliError> {
        let mut base = vec![
            setting(server, "device", device.name()),
            setting(server, "lease_mib", ""),
            setting(server, "host_lease_mib", HOST_MIB),
        ];
        if device == Device::Wgpu && gpu_budget(&server.status().await?) == 0 {
            base.push(format!("devices.wgpu.memory_mib={GPU_MIB}"));
        }
        put(server, original, &base, &[]).await?;
        let greedy = server.client("stress-greedy").await?;
        server.ask(&Ask::plain(Method::POST, format!("/models/{}/unload", server.model))).await?;
        let probe = load::jobs(server, &greedy, OTHERS_TEXTS).await?.swap_remove(0);
        let status = server.status().await?;
        let worker = worker(&status, &server.model);
        let worker = worker.ok_or_else(|| failed("no_worker", "the model has no worker after a job"))?;
        let place = worker["device"].as_str().unwrap_or(device.name()).to_owned();
        // Of several GPUs it is this one from now on, whose budget is known.
        base.push(setting(server, "device", &place));
        let number = |field: &str| worker[field].as_u64().unwrap_or(0);
        let devices = status["devices"].as_array().into_iter().flatten();
        let of_device = |entry: &&Value| entry["name"] == worker["device"];
        let budget = devices.filter(of_device).filter_map(|entry| entry["budget_bytes"].as_u64()).sum();
        let measured = Measured {
            lease: number("lease_bytes"),
            used: number("used_bytes"),
            per_token: number("bytes_per_token"),
            budget,
        };
        let other = other_model(&status, server).await?;
        Ok(Self { server, device, place, extent, original, base, greedy, probe, other, measured })
    }

    /// Sets values of the model beside the base, each as in `lease_mib=3`; those of other sections as they are.
    pub(super) async fn set(&self, values: &[String]) -> Result<(), CliError> {
        put(self.server, self.original, &self.base, values).await
    }

    /// One value of the model.
    pub(super) fn of_model(&self, key: &str, value: impl std::fmt::Display) -> String {
        setting(self.server, key, value)
    }

    /// The smallest lease in MiB that holds the loaded model and a step of the jobs of others.
    pub(super) fn snug_mib(&self) -> u64 {
        let Measured { used, per_token, .. } = self.measured;
        let step = per_token * u64::from(self.server.tokens) * u64::from(OTHERS_TEXTS) * (OTHERS as u64 + 1);
        (used + step).div_ceil(MIB) + 1
    }

    /// A worker that has run nothing yet, with the values that count.
    pub(super) async fn fresh_worker(&self) -> Result<Value, CliError> {
        self.unload().await?;
        self.recovered(clock::now()).await?;
        self.ready_worker().await
    }

    /// Ends the workers of the model after their jobs.
    pub(super) async fn unload(&self) -> Result<(), CliError> {
        let unload = Ask::plain(Method::POST, format!("/models/{}/unload", self.server.model));
        self.server.ask(&unload).await.map(drop)
    }

    /// Lets the next worker find no memory for the package.
    pub(super) async fn starve_next_load(&self) -> Result<(), CliError> {
        self.server.ask(&Ask::plain(Method::POST, format!("/models/{}/drill", self.server.model))).await?;
        self.unload().await
    }

    /// Clears what a load that failed has left behind, and loads the model.
    pub(super) async fn load(&self) -> Result<(), CliError> {
        let load = Ask::plain(Method::POST, format!("/models/{}/load", self.server.model));
        self.server.ask(&load).await.map(drop)
    }

    /// Lets a worker want for memory.
    pub(super) async fn drill(&self, worker: &Value, drill: &Value) -> Result<(), CliError> {
        self.server.ask(&Ask::post(format!("/workers/{}/drill", worker["id"]), drill)).await.map(drop)
    }

    /// A worker that is ready.
    pub(super) async fn ready_worker(&self) -> Result<Value, CliError> {
        let until = clock::now() + READY_WAIT_MAX;
        loop {
            let status = self.server.status().await?;
            if let Some(worker) = worker(&status, &self.server.model) {
                return Ok(worker);
            }
            if clock::now() >= until {
                return Err(failed("no_worker", "no worker became ready"));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// How long after `since` a job that was sent later is answered as before.
    ///
    /// # Errors
    /// It never is: the model did not come back.
    pub(super) async fn recovered(&self, since: Instant) -> Result<Duration, CliError> {
        let until = since + RECOVERY_WAIT_MAX;
        loop {
            let heard = self.probe.send(&self.greedy).await;
            match heard.ending {
                Ending::Right => return Ok(heard.ended.saturating_duration_since(since)),
                Ending::Wrong => {
                    return Err(failed("wrong_answer", "the model answers otherwise than before"));
                }
                Ending::Refused { .. } | Ending::Lost(_) if clock::now() < until => {
                    tokio::time::sleep(ASK_EVERY).await;
                }
                Ending::Refused { code, .. } | Ending::Lost(code) => {
                    return Err(failed("not_recovered", &format!("the last answer was {code}")));
                }
            }
        }
    }

    /// Jobs of those who do nothing wrong, on the model under stress.
    pub(super) async fn others(&self) -> Result<Running, CliError> {
        traffic(self.server).await
    }

    /// The same on another model, where the one under stress can't answer; none where the home has no other.
    pub(super) async fn others_elsewhere(&self) -> Result<Option<Running>, CliError> {
        match &self.other {
            Some(other) => traffic(other).await.map(Some),
            None => Ok(None),
        }
    }

    /// Sends a job that wants too much.
    pub(super) async fn want(&self, texts: u32, tokens: u32) -> Stop {
        let bodies = words::bodies(&self.server.model, texts, tokens);
        super::stop::send(&self.greedy, &bodies[0]).await
    }

    /// Sends a job with this body.
    pub(super) async fn want_body(&self, body: &Value) -> Stop {
        super::stop::send(&self.greedy, &Bytes::from(body.to_string())).await
    }

    /// How often each rung has stopped something of the model.
    pub(super) async fn counted(&self) -> Result<BTreeMap<String, u64>, CliError> {
        let metrics = self.server.text("/metrics").await?;
        Ok(counted(&metrics, &self.server.model))
    }
}

async fn traffic(server: &Server) -> Result<Running, CliError> {
    let address = server.client("stress-polite").await?;
    let jobs = Arc::new(load::jobs(server, &address, OTHERS_TEXTS).await?);
    Ok(Traffic { address, jobs, connections: OTHERS, every: Duration::from_millis(20), polite: true }.start())
}

async fn put(
    server: &Server,
    original: &Original,
    base: &[String],
    values: &[String],
) -> Result<(), CliError> {
    let all: Vec<&str> = base.iter().chain(values).map(String::as_str).collect();
    quotas::put(server, &quotas::with(original, &all)?, None).await.map(drop)
}

fn setting(server: &Server, key: &str, value: impl std::fmt::Display) -> String {
    format!("models.\"{}\".{key}={value}", server.model)
}

fn worker(status: &Value, model: &str) -> Option<Value> {
    let workers = status["workers"].as_array().into_iter().flatten();
    let mut ready = workers.filter(|worker| worker["model"] == model && worker["state"] == "ready");
    ready.next().cloned()
}

/// What GPUs have for leases, in bytes.
fn gpu_budget(status: &Value) -> u64 {
    let devices = status["devices"].as_array().into_iter().flatten();
    let gpus = devices.filter(|device| device["name"] != "cpu" && device["name"] != "host");
    gpus.filter_map(|device| device["budget_bytes"].as_u64()).sum()
}

/// Another model of the home that can answer.
async fn other_model(status: &Value, server: &Server) -> Result<Option<Server>, CliError> {
    let models = status["models"].as_array().into_iter().flatten();
    let usable = |model: &&Value| {
        let state = model["state"].as_str().unwrap_or_default();
        model["name"] != server.model.as_str() && ["ready", "unloaded", "loading"].contains(&state)
    };
    let name = models.filter(usable).find_map(|model| model["name"].as_str());
    let Some(name) = name else { return Ok(None) };
    let other = server.with_model(name);
    let address = other.client("stress-polite").await?;
    // A model that can't be asked for vectors is of no use here.
    let answered = async { Connection::open(&address).await?.send(&probe_of(name)).await }.await;
    Ok(answered.is_ok().then_some(other))
}

fn probe_of(model: &str) -> Ask {
    let body = Bytes::from(serde_json::json!({"model": model, "input": "one"}).to_string());
    Ask { body, ..Ask::plain(Method::POST, "/v1/embeddings") }
}
