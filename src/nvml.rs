//! What NVIDIA's driver says of its cards and of who uses their memory, by its own library (NVML), where there is one.
//!
//! A thread of its own asks, since a card that is lost can hold a call up for seconds; everybody else reads what it last
//! learned. A machine without the library has a typed reason instead.

use crate::clock;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use utoipa::ToSchema;

/// How often the cards are asked.
const READ_EVERY: Duration = Duration::from_secs(1);

/// How often it is tried again where there is nobody to ask.
const TRY_EVERY: Duration = Duration::from_secs(60);

/// What is this old says nothing of now, and nobody is killed for it.
const STALE_AFTER: Duration = Duration::from_secs(5);

/// Cards and processes of each that are looked at.
const CARDS_MAX: u32 = 64;
const PROCESSES_MAX: usize = 1_024;

/// The name that the driver's packages install.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// Why there is nothing to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Absence {
    /// Nobody has asked yet.
    NotRead,
    /// The library is not installed, or lacks what is asked of it.
    NoLibrary,
    /// The library is there and the kernel's driver is not.
    DriverNotLoaded,
    /// A call failed: a card may be lost.
    Failed,
}

/// Answer of `GET /status` about NVIDIA's cards.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct NvmlView {
    /// Why there is nothing; absent where the cards are read.
    absent: Option<Absence>,
    /// The same in words.
    reason: Option<String>,
    /// How old what follows is.
    age_ms: Option<u64>,
    /// One for each card.
    pub(crate) cards: Vec<Card>,
}

/// A card. What the driver does not say of it is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Card {
    /// Its number, as the driver counts.
    pub(crate) index: u32,
    /// Its name.
    pub(crate) name: String,
    /// Memory in use, by whomever.
    pub(crate) used_bytes: Option<u64>,
    /// Memory that it has.
    pub(crate) total_bytes: Option<u64>,
    /// In degrees Celsius.
    pub(crate) temperature_c: Option<u32>,
    /// Part of the last second in which it computed, in percent.
    pub(crate) busy_percent: Option<u32>,
    /// Whether it is divided into instances (MIG).
    pub(crate) mig: Option<bool>,
    /// Processes that use it by way of MPS.
    pub(crate) mps_processes: Option<usize>,
    /// Every process that has memory on it.
    pub(crate) processes: Vec<Process>,
}

/// A process with memory on a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Process {
    /// As the server sees it.
    pub(crate) pid: u32,
    /// What it has; absent where the driver does not say.
    pub(crate) used_bytes: Option<u64>,
}

/// What was last learned.
#[derive(Debug)]
struct Reading {
    cards: Result<Vec<Card>, (Absence, String)>,
    at: Instant,
}

/// The cards of this machine, as they last were.
#[derive(Debug, Clone)]
pub(crate) struct Cards(Arc<Mutex<Reading>>);

impl Cards {
    /// Begins the thread that asks.
    pub(crate) fn watch() -> std::io::Result<Self> {
        let cards = Self::unread();
        let told = cards.clone();
        std::thread::Builder::new().name("nvml".to_owned()).spawn(move || {
            let mut library = Library::new(LIBRARY.as_ref());
            loop {
                let read = library.read();
                let pause = if read.is_ok() { READ_EVERY } else { TRY_EVERY };
                told.tell(read);
                std::thread::sleep(pause);
            }
        })?;
        Ok(cards)
    }

    /// Before the first reading.
    pub(crate) fn unread() -> Self {
        let cards = Err((Absence::NotRead, "the cards have not been read yet".to_owned()));
        Self(Arc::new(Mutex::new(Reading { cards, at: clock::instant() })))
    }

    fn tell(&self, cards: Result<Vec<Card>, (Absence, String)>) {
        *self.0.lock().expect("no thread panics with this lock") = Reading { cards, at: clock::instant() };
    }

    /// For the operator.
    pub(crate) fn view(&self) -> NvmlView {
        let reading = self.0.lock().expect("no thread panics with this lock");
        let age = clock::instant().duration_since(reading.at);
        match &reading.cards {
            Ok(cards) => NvmlView {
                absent: None,
                reason: None,
                age_ms: Some(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
                cards: cards.clone(),
            },
            Err((absent, reason)) => NvmlView {
                absent: Some(*absent),
                reason: Some(reason.clone()),
                age_ms: None,
                cards: Vec::new(),
            },
        }
    }

    /// What the process had more of the cards' memory than `limit`, if it was seen a moment ago.
    pub(crate) fn over_lease(&self, pid: i32, limit: u64) -> Option<u64> {
        let reading = self.0.lock().expect("no thread panics with this lock");
        let fresh = clock::instant().duration_since(reading.at) < STALE_AFTER;
        reading.cards.as_ref().ok().filter(|_| fresh).and_then(|cards| over_lease(cards, pid, limit))
    }
}

/// What a process has of all cards' memory, where that is more than `limit`. What the driver does not say is no reason.
fn over_lease(cards: &[Card], pid: i32, limit: u64) -> Option<u64> {
    let of_it =
        cards.iter().flat_map(|card| &card.processes).filter(|one| i64::from(one.pid) == i64::from(pid));
    let used = of_it.filter_map(|one| one.used_bytes).fold(0, u64::saturating_add);
    (used > limit).then_some(used)
}

/// The library, while it answers.
struct Library<'a> {
    path: &'a OsStr,
    nvml: Option<Nvml>,
}

impl<'a> Library<'a> {
    fn new(path: &'a OsStr) -> Self {
        Self { path, nvml: None }
    }

    /// Asks for everything. After a failure it is opened anew.
    fn read(&mut self) -> Result<Vec<Card>, (Absence, String)> {
        let read = self.try_read();
        if read.is_err() {
            self.nvml = None;
        }
        read.map_err(|error| (absence(&error), error.to_string()))
    }

    fn try_read(&mut self) -> Result<Vec<Card>, NvmlError> {
        let nvml = match self.nvml.take() {
            Some(nvml) => nvml,
            None => Nvml::builder().lib_path(self.path).init()?,
        };
        let nvml = self.nvml.insert(nvml);
        let count = nvml.device_count()?.min(CARDS_MAX);
        (0..count).map(|index| card(nvml, index)).collect()
    }
}

fn absence(error: &NvmlError) -> Absence {
    match error {
        NvmlError::LibloadingError(_)
        | NvmlError::LibraryNotFound
        | NvmlError::FunctionNotFound
        | NvmlError::FailedToLoadSymbol(_) => Absence::NoLibrary,
        NvmlError::DriverNotLoaded => Absence::DriverNotLoaded,
        // Most of its errors are of calls that are not made here.
        _ => Absence::Failed,
    }
}

/// A card that is lost fails the whole reading; what one does not support is only left out.
fn card(nvml: &Nvml, index: u32) -> Result<Card, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let memory = supported(device.memory_info())?;
    let lists =
        [supported(device.running_compute_processes())?, supported(device.running_graphics_processes())?];
    let mps = supported(device.mps_running_compute_processes())?;
    Ok(Card {
        index,
        name: supported(device.name())?.unwrap_or_default().chars().filter(|c| !c.is_control()).collect(),
        used_bytes: memory.as_ref().map(|memory| memory.used),
        total_bytes: memory.as_ref().map(|memory| memory.total),
        temperature_c: supported(device.temperature(TemperatureSensor::Gpu))?,
        busy_percent: supported(device.utilization_rates())?.map(|rates| rates.gpu),
        mig: supported(device.mig_mode())?.map(|mode| mode.current == 1),
        mps_processes: mps.as_ref().map(Vec::len),
        processes: processes(lists.into_iter().chain([mps]).flatten().flatten()),
    })
}

/// A process may be in several lists, which then say the same of it.
fn processes(listed: impl Iterator<Item = ProcessInfo>) -> Vec<Process> {
    let mut by_pid: BTreeMap<u32, Option<u64>> = BTreeMap::new();
    for ProcessInfo { pid, used_gpu_memory, .. } in listed.take(PROCESSES_MAX) {
        let used = match used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        let known = by_pid.entry(pid).or_default();
        *known = (*known).max(used);
    }
    by_pid.into_iter().map(|(pid, used_bytes)| Process { pid, used_bytes }).collect()
}

fn supported<T>(said: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match said {
        Ok(said) => Ok(Some(said)),
        Err(
            NvmlError::NotSupported
            | NvmlError::NoPermission
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_),
        ) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::process::Command;

    /// The stand-in for the driver's library, compiled with these definitions.
    fn stand_in(folder: &tempfile::TempDir, definitions: &[&str]) -> PathBuf {
        let library = folder.path().join("libnvidia-ml.so.1");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/nvml_stand_in.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).args(definitions);
        assert!(compiler.status().expect("a C compiler is there, as for the build").success());
        library
    }

    fn read(definitions: &[&str]) -> Result<Vec<Card>, Absence> {
        let folder = tempfile::tempdir().unwrap();
        let library = stand_in(&folder, definitions);
        Library::new(library.as_os_str()).read().map_err(|(absence, _)| absence)
    }

    #[test]
    fn a_machine_without_library_or_driver_says_so() {
        let mut none = Library::new(OsStr::new("/no/such/library.so"));
        assert_eq!(none.read().unwrap_err().0, Absence::NoLibrary);
        assert_eq!(read(&["-DINIT=9"]), Err(Absence::DriverNotLoaded));
        assert_eq!(read(&["-DINIT=999"]), Err(Absence::Failed));
        assert_eq!(Cards::unread().view().absent, Some(Absence::NotRead));
    }

    #[test]
    fn what_the_driver_says_is_what_is_shown() {
        let cards = read(&[]).unwrap();
        let card = Card {
            index: 0,
            name: "Stand-in".to_owned(),
            used_bytes: Some(3 << 30),
            total_bytes: Some(8 << 30),
            temperature_c: Some(41),
            busy_percent: Some(73),
            mig: Some(false),
            mps_processes: Some(1),
            processes: vec![
                Process { pid: 100, used_bytes: Some(2 << 30) },
                Process { pid: 200, used_bytes: None },
                Process { pid: 300, used_bytes: Some(1 << 20) },
            ],
        };
        assert_eq!(cards, [card]);
    }

    #[test]
    fn what_a_card_does_not_support_is_left_out() {
        let cards = read(&["-DTEMPERATURE=3", "-DMIG=3"]).unwrap();
        assert_eq!((cards[0].temperature_c, cards[0].mig, cards[0].busy_percent), (None, None, Some(73)));
    }

    #[test]
    fn a_call_that_fails_in_the_middle_is_told_and_the_next_reading_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        // The second reading finds the card lost, the third finds it back.
        let library = stand_in(&folder, &["-DLOST_AT=2"]);
        let mut library = Library::new(library.as_os_str());
        let cards = Cards::unread();
        assert_eq!(library.read().unwrap().len(), 1);
        let lost = library.read();
        assert_eq!(lost.as_ref().unwrap_err().0, Absence::Failed);
        cards.tell(lost);
        assert_eq!(cards.over_lease(100, 0), None, "nobody is killed by what could not be read");
        cards.tell(library.read());
        assert_eq!(cards.over_lease(100, 0), Some(2 << 30));
    }

    #[test]
    fn a_process_is_over_its_lease_by_all_that_it_has_on_all_cards() {
        let of = |index, processes: &[(u32, Option<u64>)]| Card {
            index,
            name: String::new(),
            used_bytes: None,
            total_bytes: None,
            temperature_c: None,
            busy_percent: None,
            mig: None,
            mps_processes: None,
            processes: processes.iter().map(|&(pid, used_bytes)| Process { pid, used_bytes }).collect(),
        };
        let cards = [of(0, &[(1, Some(10)), (2, None)]), of(1, &[(1, Some(5)), (3, Some(u64::MAX))])];
        for (pid, limit, expected) in [
            (1, 14, Some(15)),
            (1, 15, None),
            (2, 0, None),
            (3, u64::MAX - 1, Some(u64::MAX)),
            (4, 0, None),
            (-1, 0, None),
        ] {
            assert_eq!(over_lease(&cards, pid, limit), expected, "{pid} {limit}");
        }
    }
}
