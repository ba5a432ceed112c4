//! Putting the server together, in the order in which nothing is reachable before it is safe.

use crate::api::{self, App, ListenError, Listeners};
use crate::audit::{Audit, AuditStartError, Settings};
use crate::capture::{CaptureService, SoundPlaces, SoundPrograms};
use crate::clients::{self, ClientsError};
use crate::clock;
use crate::dispatch::{Devices, Dispatcher, Machine, ModelsError};
use crate::gpus::{GpuError, Gpus};
use crate::grants::{GrantService, Programs};
use crate::home::{Home, HomeError, HomeLock};
use crate::keys::{self, Keys, KeysError};
use crate::nvml::Cards;
use crate::packages::{Packages, PackagesError};
use crate::quota_file;
use crate::ready_file::ReadyFile;
use crate::status::{self, Facts, Identity};
use crate::workers::{ProbeError, Spawner, prove_cpu};
use metrics_exporter_prometheus::PrometheusBuilder;
use ringfence_sandbox::{DropError, Host, PreflightError};
use ringfence_scheduler::quotas::{QuotaError, Quotas};
use ringfence_scheduler::{ConfigError, Scheduler};
use rustix::fs::{Mode, OFlags};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long running jobs may go on after SIGTERM.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// How long the runtime's threads may take to end after the last task.
const THREADS_END_MAX: Duration = Duration::from_secs(1);

/// Threads of the runtime: requests are short, models run elsewhere.
const THREADS: usize = 2;

/// The longest that audit entries are kept where their end is set, in days: a century.
const KEEP_DAYS_MAX: u64 = 36_500;

/// The command line.
#[derive(Debug, clap::Parser)]
#[command(
    name = "ringfence-server",
    version,
    about = "Runs local models for the apps of one machine, each in a sandboxed process.",
    after_help = "Example:\n  ringfence-server --home /var/lib/ringfence --listen 127.0.0.1:8640"
)]
pub(crate) struct Options {
    /// The home folder, made by `ringfence init`.
    #[arg(long, value_name = "DIR")]
    home: PathBuf,
    /// Also serve clients with an API key on this loopback address; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Write {"url","socket","admin_socket","pid"} to this file when ready.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// When started as root: the user to become before anything is reachable [default: ringfence].
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Also write the audit log's checkpoints to this folder: of another machine, they show who wrote the log anew.
    #[arg(long, value_name = "DIR")]
    audit_second: Option<PathBuf>,
    /// Remove audit entries that are older than this, at the start and once a day [default: never]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=KEEP_DAYS_MAX))]
    audit_keep_days: Option<u64>,
    /// The socket of the sound server [default: of $PULSE_SERVER, or pulse/native below $XDG_RUNTIME_DIR or /run/user/UID]
    #[arg(long, value_name = "SOCKET")]
    pulse_server: Option<PathBuf>,
    /// The sound server's cookie [default: $PULSE_COOKIE, or .config/pulse/cookie in $HOME]
    #[arg(long, value_name = "FILE")]
    pulse_cookie: Option<PathBuf>,
    /// What to log, as in `info` or `ringfence_server=debug`; lines are JSON on standard error.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

/// Why the server did not start; each says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("can't open {path}, which must lie beside ringfence-server: {source}")]
    Program { path: PathBuf, source: std::io::Error },
    #[error("--user is for a server that is started as root")]
    UserWithoutRoot,
    #[error("--log: {0}")]
    Log(#[from] tracing_subscriber::filter::ParseError),
    #[error("--ready-file {path}: {source}")]
    ReadyFile { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Drop(#[from] DropError),
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("quotas.toml: {0}")]
    Quotas(#[from] QuotaError),
    #[error("quotas.toml: {0}")]
    Config(#[from] ConfigError),
    #[error("quotas.toml: {0}")]
    Gpu(#[from] GpuError),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Clients(#[from] ClientsError),
    #[error(transparent)]
    Packages(#[from] PackagesError),
    #[error(transparent)]
    Models(#[from] ModelsError),
    #[error(transparent)]
    Audit(#[from] AuditStartError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("metrics can't be recorded: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    #[error("the machine's memory can't be read: {0}")]
    Memory(#[from] sysinfo::Error),
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    #[error("the runtime can't start: {0}")]
    Runtime(#[from] std::io::Error),
}

/// What is opened while the server may still be root.
struct Opened {
    home: Home,
    worker: OwnedFd,
    fileguard: OwnedFd,
    audio: OwnedFd,
    ready_file: Option<(PathBuf, ReadyFile)>,
    identity: Identity,
}

/// Runs the server to its end. Call it from `main`, before any thread exists.
pub(crate) fn serve(options: &Options) -> Result<(), StartError> {
    let filter = tracing_subscriber::EnvFilter::try_new(&options.log)?;
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    // Sockets are closed to others until their modes are set.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    ringfence_sandbox::raise_nofile().map_err(std::io::Error::from)?;
    let opened = open_and_drop(options)?;
    let host = ringfence_sandbox::preflight()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let ended = runtime.block_on(run(options, opened, &host));
    // A thread may be reading the files of a package, gigabytes of them: nobody needs what it finds.
    runtime.shutdown_timeout(THREADS_END_MAX);
    ended
}

fn open_and_drop(options: &Options) -> Result<Opened, StartError> {
    let as_root = rustix::process::geteuid().is_root();
    if options.user.is_some() && !as_root {
        return Err(StartError::UserWithoutRoot);
    }
    let home = Home::open(&options.home)?;
    let worker = open_program("ringfence-worker")?;
    let fileguard = open_program("ringfence-fileguard")?;
    let audio = open_program("ringfence-audio")?;
    let prepare = |path: &PathBuf| {
        let failed = |source| StartError::ReadyFile { path: path.clone(), source };
        Ok::<_, StartError>((path.clone(), ReadyFile::prepare(path, as_root).map_err(failed)?))
    };
    let ready_file = options.ready_file.as_ref().map(prepare).transpose()?;
    if as_root {
        ringfence_sandbox::drop_to_user(options.user.as_deref().unwrap_or("ringfence"))?;
    }
    let identity = if as_root { Identity::Enforced } else { Identity::Advisory };
    Ok(Opened { home, worker, fileguard, audio, ready_file, identity })
}

/// Programs are found beside the server's own executable, nowhere else.
fn open_program(name: &str) -> Result<OwnedFd, StartError> {
    let own = std::env::current_exe()?;
    let path = own.parent().unwrap_or(Path::new("/")).join(name);
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| StartError::Program { path, source: error.into() })
}

/// What has been put together when the sockets are bound.
struct Running {
    app: Arc<App>,
    tcp: Option<TcpListener>,
    new_listeners: api::NewListeners,
    _lock: HomeLock,
}

async fn run(options: &Options, opened: Opened, host: &Host) -> Result<(), StartError> {
    let ready_file = opened.ready_file;
    let Opened { home, worker, fileguard, audio, identity, .. } = opened;
    let parts = Parts { home, worker, fileguard, audio, identity };
    let running = assemble(options, parts, host).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, stopped) = watch::channel(false);
    let app = running.app.clone();
    let serving = tokio::spawn(api::serve(api::router(&app), running.tcp, running.new_listeners, stopped));
    tokio::spawn(app.dispatcher.clone().keep_time());
    tokio::spawn(app.dispatcher.clone().keep_asking());
    tokio::spawn(app.dispatcher.clone().keep_comparing());
    tokio::spawn(app.grants.clone().keep_time());
    bind(&app).await?;
    announce(&app, ready_file)?;

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: no new jobs, running ones may end");
    let stop_sent = stop.send(true).is_ok();
    app.captures.end_all().await;
    app.dispatcher.drain(DRAIN_MAX).await;
    if stop_sent && serving.await.is_err() {
        tracing::error!("the listening task panicked");
    }
    app.audit.stop().await;
    tracing::info!("stopped");
    Ok(())
}

/// Binds the sockets of the home and of every client, which the listening task takes over.
async fn bind(app: &App) -> Result<(), StartError> {
    app.listeners.bind_home(&app.home).await?;
    let clients = app.clients.lock().expect("no thread panics with this lock").clone();
    for client in clients {
        app.listeners.bind_client(&app.home, &client).await?;
    }
    Ok(())
}

struct Parts {
    home: Home,
    worker: OwnedFd,
    fileguard: OwnedFd,
    audio: OwnedFd,
    identity: Identity,
}

async fn assemble(options: &Options, parts: Parts, host: &Host) -> Result<Running, StartError> {
    let home = Arc::new(parts.home);
    home.folder("run", 0o755)?;
    let lock = home.lock()?;
    let mut run_id = [0; 8];
    getrandom::fill(&mut run_id)?;
    let settings = Settings { second: options.audit_second.clone(), keep_days: options.audit_keep_days };
    let audit = Audit::open(&home, &keys::hex(&run_id), &settings)?;
    quota_file::finish(&home)?;
    let text = quota_file::read(&home)?.unwrap_or_default();
    let quotas = Quotas::parse_bytes(&text)?;
    let machine = Machine { memory_bytes: status::memory()?.total, cores: cores() };
    let scheduler = Scheduler::new(quotas.config(machine.memory_bytes, machine.cores)?);
    let keys = Keys::load(&home)?;
    let clients = clients::load(&home)?;
    let packages = Packages::open(home.clone())?;
    let metrics = PrometheusBuilder::new().install_recorder()?;
    let spawner = Spawner::new(parts.worker)?;
    let sandbox = prove_cpu(&spawner, host).await?;
    let gpus = Gpus::of(&quotas)?;
    let drivers = gpus.drivers_in_use(&quotas);
    let machine = Devices { machine, gpus, cards: Cards::watch()? };
    let dispatcher = Dispatcher::new(scheduler, spawner, packages, machine, (quotas, text), audit.clone());
    dispatcher.prove_gpus(&drivers).await?;
    dispatcher.reload_models().await?;

    let (listeners, new_listeners) = Listeners::channel();
    let tcp = match options.listen {
        Some(address) => Some(api::bind_tcp(address).await?),
        None => None,
    };
    let facts = Facts {
        run_id: keys::hex(&run_id),
        identity: parts.identity,
        home: home.path().to_owned(),
        listen: tcp.as_ref().map(TcpListener::local_addr).transpose()?,
        sandbox,
    };
    let fileguards = Spawner::new(parts.fileguard)?;
    let run = *run_id.first_chunk().expect("6 of 8 bytes");
    let places = SoundPlaces::find(options.pulse_server.as_deref(), options.pulse_cookie.as_deref());
    let sound = Arc::new(SoundPrograms::new(Spawner::new(parts.audio)?, places));
    let programs = Programs { fileguards, sound: sound.clone() };
    let grants = GrantService::new(home.clone(), programs, run, facts.run_id.clone(), audit.clone())?;
    let grants = Arc::new(grants);
    let captures = CaptureService::new(sound, grants.clone(), dispatcher.clone(), audit.clone());
    let app = Arc::new(App {
        audit,
        captures: Arc::new(captures),
        grants,
        home,
        keys: Mutex::new(keys),
        clients: Mutex::new(clients),
        dispatcher,
        facts,
        metrics,
        request_ids: AtomicU64::new(u64::from_le_bytes(run_id)),
        listeners,
    });
    Ok(Running { app, tcp, new_listeners, _lock: lock })
}

fn cores() -> u16 {
    u16::try_from(status::cores()).unwrap_or(u16::MAX)
}

/// Tells whoever waits: the ready file, systemd's or a script's, and the log.
fn announce(app: &App, ready_file: Option<(PathBuf, ReadyFile)>) -> Result<(), StartError> {
    let run = std::path::absolute(app.home.path())?.join("run");
    let url = app.facts.listen.map(|address| format!("http://{address}"));
    let text = serde_json::json!({
        "url": url,
        "socket": run.join("api.sock"),
        "admin_socket": run.join("admin.sock"),
        "pid": std::process::id(),
    });
    tracing::info!(url, home = %app.home.path().display(), uptime_us = clock::now().0, "ready");
    if let Some((path, file)) = ready_file {
        file.write(&text.to_string()).map_err(|source| StartError::ReadyFile { path, source })?;
    }
    Ok(())
}
