//! A disk in memory: it knows what would survive a power cut, and fails where a test wants it to.

use crate::Random;
use ringfence_audit::Files;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

/// What happens at the chosen step, and at each one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No room is left: half of a write gets through.
    Full,
    /// The file system has become read-only.
    ReadOnly,
    /// Bytes do not reach the disk, once; later calls say that all is well.
    Sync,
}

/// Several of these are one disk.
#[derive(Clone, Default)]
pub(crate) struct Disk(Rc<RefCell<State>>);

#[derive(Clone, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    locked: bool,
    steps: usize,
    fault: Option<(usize, Fault)>,
}

#[derive(Clone, Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
}

impl Disk {
    /// Writing steps so far.
    pub(crate) fn steps(&self) -> usize {
        self.0.borrow().steps
    }

    /// From this step on, so many from now, it fails like this.
    pub(crate) fn fail(&self, after: usize, fault: Fault) {
        let mut state = self.0.borrow_mut();
        state.fault = Some((state.steps + after, fault));
    }

    /// What a process finds that starts after the last one ended without a power cut.
    pub(crate) fn restarted(&self) -> Self {
        let state = State { locked: false, fault: None, steps: 0, ..self.0.borrow().clone() };
        Self(Rc::new(RefCell::new(state)))
    }

    /// What is there after a power cut: all that was synced, and by chance some of what was not.
    pub(crate) fn after_power_cut(&self, random: &mut Random) -> Self {
        let mut state = self.0.borrow().clone();
        for inode in &mut state.inodes {
            let unsynced = inode.bytes.len().saturating_sub(inode.durable.len()) as u64;
            let kept = inode.durable.len() + usize::try_from(random.below(unsynced + 1)).unwrap();
            let mut bytes = inode.durable.clone();
            bytes.extend(inode.bytes.iter().skip(bytes.len()).take(kept - inode.durable.len()));
            if kept > inode.durable.len() && random.below(4) == 0 {
                // A block that was allocated and not written.
                let end = bytes.len();
                bytes[inode.durable.len()..end].fill(0);
            }
            (inode.bytes, inode.durable) = (bytes.clone(), bytes);
        }
        let mut names = state.durable_names.clone();
        // The system may have brought a change of names to the disk by itself.
        if random.below(2) == 0 {
            names = state.names.clone();
        }
        (state.names, state.durable_names) = (names.clone(), names);
        Self(Rc::new(RefCell::new(State { locked: false, fault: None, steps: 0, ..state })))
    }

    /// Every file.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.0.borrow();
        state.names.iter().map(|(name, inode)| (name.clone(), state.inodes[*inode].bytes.clone())).collect()
    }

    /// A disk with these files.
    pub(crate) fn with(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let inodes =
            files.values().map(|bytes| Inode { bytes: bytes.clone(), durable: bytes.clone() }).collect();
        let names: BTreeMap<_, _> = files.keys().cloned().zip(0..).collect();
        let state = State { inodes, durable_names: names.clone(), names, ..State::default() };
        Self(Rc::new(RefCell::new(state)))
    }

    /// Changes the bytes of a file.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.borrow_mut();
        let inode = state.names[name];
        change(&mut state.inodes[inode].bytes);
    }
}

impl State {
    /// Counts a step; an error if it fails, else whether it only pretends to sync.
    fn step(&mut self, syncs: bool) -> io::Result<()> {
        self.steps += 1;
        match self.fault {
            Some((at, Fault::Full)) if self.steps > at => Err(io::ErrorKind::StorageFull.into()),
            Some((at, Fault::ReadOnly)) if self.steps > at => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            Some((at, Fault::Sync)) if self.steps > at && syncs => {
                self.fault = None;
                Err(io::Error::other("input/output error"))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn half(&self, bytes: &[u8]) -> Vec<u8> {
        let full = matches!(self.fault, Some((_, Fault::Full)));
        bytes[..if full { bytes.len() / 2 } else { 0 }].to_vec()
    }
}

impl Files for Disk {
    fn read(&self, name: &str, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        let state = self.0.borrow();
        let bytes = state.names.get(name).map(|inode| state.inodes[*inode].bytes.clone());
        match bytes {
            Some(bytes) if bytes.len() > bytes_max => Err(io::ErrorKind::FileTooLarge.into()),
            bytes => Ok(bytes),
        }
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let stepped = state.step(true);
        let written = if stepped.is_ok() { bytes.to_vec() } else { state.half(bytes) };
        let durable = if stepped.is_ok() { written.clone() } else { Vec::new() };
        state.inodes.push(Inode { bytes: written, durable });
        let inode = state.inodes.len() - 1;
        state.names.insert(name.to_owned(), inode);
        stepped
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.step(false)?;
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn sync_folder(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.step(true)?;
        let folder = |name: &str| name.rsplit_once('/').map(|(folder, _)| folder.to_owned());
        let of = folder(name);
        state.durable_names.retain(|name, _| folder(name) != of);
        let now: Vec<_> = state.names.iter().filter(|(name, _)| folder(name) == of).collect();
        let now: Vec<_> = now.into_iter().map(|(name, inode)| (name.clone(), *inode)).collect();
        state.durable_names.extend(now);
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let inode = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let stepped = state.step(false);
        let written = if stepped.is_ok() { bytes.to_vec() } else { state.half(bytes) };
        state.inodes[inode].bytes.extend(written);
        stepped
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let inode = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        state.step(true)?;
        let bytes = state.inodes[inode].bytes.clone();
        state.inodes[inode].durable = bytes;
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.step(false)?;
        state.names.remove(name);
        Ok(())
    }

    fn lock(&mut self, _name: &str) -> io::Result<bool> {
        let mut state = self.0.borrow_mut();
        Ok(!std::mem::replace(&mut state.locked, true))
    }
}
