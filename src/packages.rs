//! The packages of a home, through the `models` crate: what is there, and the verified bytes of one.

use crate::clock;
use crate::home::{Home, HomeError};
use ringfence_models::{
    BlockType, FLOOR_BYTES_MAX, FileName, LoadedPackage, Manifest, PROFILE_BYTES_MAX, PROFILES_FOLDER,
    PackageError, PackageName, Profile, ProfileDevice, PublicKey, Refusal, Stamps, Store, StoreError,
    TRUST_BYTES_MAX, Trust, TrustError, TrustFiles, TrustedKey, Verified,
};
use ringfence_protocol::{self as protocol, KeptBlocks};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The package by which live sound is cut into phrases. It runs no jobs of its own.
pub(crate) const DETECTOR: &str = "silero-vad";

/// The longest `root.pub`.
const ROOT_BYTES_MAX: usize = 4 * 1024;

/// The folder of packages with the trust that applies to them.
#[derive(Debug)]
pub(crate) struct Packages {
    home: Arc<Home>,
    store: Store,
    /// The highest version of the trust file that this run has verified: lowering the floor on the disk is not enough.
    seen: AtomicU64,
    /// The version of the trust file that was read last, and its SHA-256.
    last: Mutex<Option<(u64, String)>>,
}

/// Why packages can't be read or used. What is wrong with one package is its refusal, not this.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackagesError {
    /// A file or folder of the home.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// A file that `ringfence init` makes is not there.
    #[error(
        "the home has no {file}; make the home with `ringfence init`, or put it back with `ringfence trust restore`"
    )]
    Missing {
        /// Which.
        file: &'static str,
    },
    /// The pinned root key; nothing is trusted without it.
    #[error("root.pub: {0}; put the operator's copy back: ringfence trust restore")]
    Root(String),
    /// The trust file or its floor; nothing is trusted without them.
    #[error("trust.json: {0}; put the operator's copy back: ringfence trust restore")]
    Trust(#[from] TrustError),
    /// The folder of packages.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// One package.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A package of the detector's name.
    #[error("it is no voice detector")]
    NoDetector,
    /// A name that no package can have.
    #[error(transparent)]
    Name(#[from] ringfence_models::NameError),
}

/// A package and whether it may be run.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Its name.
    pub(crate) name: String,
    /// What it is, or why it is refused.
    pub(crate) verdict: Result<Surveyed, String>,
}

/// What a verified package says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Surveyed {
    /// SHA-256 over its files' digests, in hex.
    pub(crate) digest: String,
    /// Id of the key that signed it.
    pub(crate) signer: String,
    /// What a worker warms up for.
    pub(crate) architecture: protocol::Architecture,
    /// Longest input in tokens.
    pub(crate) max_tokens: u32,
    /// Whether nobody had pinned the digest of its source.
    pub(crate) unverified_source: bool,
    /// Bytes of its weight files.
    pub(crate) weight_bytes: u64,
    /// Bytes of all files that a worker gets.
    pub(crate) package_bytes: u64,
    /// All of its files.
    pub(crate) files: Vec<FileName>,
    /// What a worker of this build takes, for each device where it was measured.
    pub(crate) profiles: Vec<Profile>,
}

/// What a worker will take, by its package's profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Predicted {
    /// Peak with the smallest step.
    pub(crate) least_bytes: u64,
    /// Peak with the largest step.
    pub(crate) peak_bytes: u64,
}

impl Surveyed {
    /// What a worker on this device and with this many threads takes of the device's memory that runs steps of this many
    /// tokens, or of one longer input.
    pub(crate) fn predicted(
        &self,
        device: ProfileDevice,
        threads: u16,
        step_tokens: u32,
    ) -> Option<Predicted> {
        let profile = self.profiles.iter().find(|profile| profile.device == device)?;
        let (threads, largest) = (u32::from(threads), step_tokens.max(self.max_tokens));
        Some(Predicted {
            least_bytes: profile.peak_bytes(threads, 1, 1),
            // As many sequences as there can be: one for each token.
            peak_bytes: profile.peak_bytes(threads, step_tokens, largest),
        })
    }
}

/// Verified bytes in sealed memory.
#[derive(Debug)]
pub(crate) struct Package {
    name: PackageName,
    /// As in [`Surveyed`].
    pub(crate) digest: String,
    /// Of its files on the disk, from before they were read.
    pub(crate) stamps: Stamps,
    /// Id of the key that signed it.
    pub(crate) signer: String,
    names: Vec<FileName>,
    files: Vec<(String, Arc<OwnedFd>)>,
    /// Tensors that are in quantised blocks.
    blocks: Vec<KeptBlocks>,
}

/// What was found where the stamps of a loaded package's files differ.
#[derive(Debug)]
pub(crate) struct Found {
    /// The stamps, from before the files were read.
    pub(crate) stamps: Stamps,
    /// `None` where the files are the running ones all the same.
    pub(crate) change: Option<Change>,
}

/// The disk holds something else than what runs.
#[derive(Debug)]
pub(crate) struct Change {
    /// One sentence.
    pub(crate) reason: String,
    /// The file, where it is one.
    pub(crate) file: Option<String>,
    /// Digest that runs: the file's, or else the package's.
    pub(crate) running: String,
    /// Digest on the disk, where there is one.
    pub(crate) found: Option<String>,
}

impl Package {
    fn missing(&self) -> Change {
        let reason = "it is no longer there".to_owned();
        Change { reason, file: None, running: self.digest.clone(), found: None }
    }

    fn refused(&self, refusal: &Refusal) -> Change {
        let change = Change { reason: refusal.to_string(), ..self.missing() };
        match refusal {
            Refusal::DigestMismatch { file, signed, found } => {
                let (file, found) = (Some(file.clone()), Some(found.to_string()));
                Change { file, running: signed.to_string(), found, ..change }
            }
            Refusal::FileMissing(file) => Change { file: Some(file.clone()), ..change },
            _ => change,
        }
    }

    /// Names and descriptors, for the message that loads them.
    pub(crate) fn files(&self) -> (Vec<String>, Vec<Arc<OwnedFd>>) {
        self.files.iter().cloned().unzip()
    }

    /// Tensors that are in quantised blocks, for the same message.
    pub(crate) fn blocks(&self) -> Vec<KeptBlocks> {
        self.blocks.clone()
    }
}

impl Packages {
    /// Opens the folder of packages.
    pub(crate) fn open(home: Arc<Home>) -> Result<Self, PackagesError> {
        let store = Store::from_fd(home.existing_folder("models")?);
        Ok(Self { home, store, seen: AtomicU64::new(0), last: Mutex::default() })
    }

    /// Verifies every package. Blocks, and reads all of their bytes.
    pub(crate) fn survey(&self) -> Result<Vec<Survey>, PackagesError> {
        let trust = self.trust()?;
        let verify = |name: PackageName| {
            let verdict = self.store.verify(&name, &trust, clock::unix_seconds());
            let verdict = verdict.map_err(|error| error.to_string()).and_then(|verified| {
                let profile = |device| self.profile(&name, &verified, device);
                let profiles = [ProfileDevice::Cpu, ProfileDevice::Wgpu].into_iter().filter_map(profile);
                surveyed(&verified, profiles.collect())
            });
            Survey { name: name.to_string(), verdict }
        };
        let runs_no_jobs = |name: &PackageName| name.to_string() == DETECTOR;
        Ok(self.store.list()?.into_iter().filter(|name| !runs_no_jobs(name)).map(verify).collect())
    }

    /// The package's profile on a device, if there is one that this build's workers were measured for.
    fn profile(&self, name: &PackageName, verified: &Verified, device: ProfileDevice) -> Option<Profile> {
        let digest = verified.digest.to_string();
        let file = format!("{PROFILES_FOLDER}/{}", Profile::file_name(&digest, device));
        let read = self.home.read(&file, PROFILE_BYTES_MAX).map_err(|error| error.to_string());
        let parse = |bytes: Vec<u8>| Profile::parse(&bytes).map_err(|error| error.to_string());
        let problem = match read.and_then(|bytes| bytes.map(parse).transpose()) {
            Ok(None) => return None,
            Ok(Some(profile)) if profile.package != digest => "it is another package's".to_owned(),
            Ok(Some(profile)) if profile.device != device => "it is another device's".to_owned(),
            Ok(Some(profile)) if profile.worker != protocol::DIGEST => {
                "another build was measured".to_owned()
            }
            Ok(Some(profile)) => return Some(profile),
            Err(error) => error,
        };
        let device = device.name();
        tracing::warn!(
            model = %name,
            "{file} is not used: {problem}; run `ringfence model calibrate {name} --device {device}`"
        );
        None
    }

    /// Reads one package into sealed memory and verifies these very bytes. Blocks.
    pub(crate) fn load(&self, name: &str, names: Vec<FileName>) -> Result<Package, PackagesError> {
        let name = PackageName::new(name)?;
        // Before the bytes: a change that the reading did not see is seen by the next look.
        let stamps = self.store.stamps(&name, &names);
        let LoadedPackage { verified, files } =
            self.store.load(&name, &self.trust()?, clock::unix_seconds())?;
        let files = files.into_iter().map(|file| (file.name.to_string(), Arc::new(file.fd))).collect();
        let (digest, signer) = (verified.digest.to_string(), verified.signer.to_string());
        let blocks = kept_blocks(&verified.manifest);
        Ok(Package { name, digest, signer, stamps, names, files, blocks })
    }

    /// The same for the voice detector, whatever files it has. Blocks.
    pub(crate) fn load_detector(&self) -> Result<Package, PackagesError> {
        let name = PackageName::new(DETECTOR)?;
        let LoadedPackage { verified, files } =
            self.store.load(&name, &self.trust()?, clock::unix_seconds())?;
        if verified.manifest.architecture() != ringfence_models::Architecture::SileroVad {
            return Err(PackagesError::NoDetector);
        }
        let files = files.into_iter().map(|file| (file.name.to_string(), Arc::new(file.fd))).collect();
        let (digest, signer) = (verified.digest.to_string(), verified.signer.to_string());
        let stamps = self.store.stamps(&name, &[]);
        Ok(Package { name, digest, signer, stamps, names: Vec::new(), files, blocks: Vec::new() })
    }

    /// Compares the files of a loaded package with what runs, where their stamps are not the known ones; `None` where
    /// they are. Blocks, and may read all of their bytes.
    pub(crate) fn compare(&self, package: &Package, known: &Stamps) -> Result<Option<Found>, PackagesError> {
        let stamps = self.store.stamps(&package.name, &package.names);
        if stamps == *known {
            return Ok(None);
        }
        let change = match self.store.verify(&package.name, &self.trust()?, clock::unix_seconds()) {
            Err(PackageError::System(error)) => return Err(error.into()),
            Ok(verified) if verified.digest.to_string() == package.digest => None,
            Ok(verified) => Some(Change {
                reason: "another version was put in its place".to_owned(),
                found: Some(verified.digest.to_string()),
                ..package.missing()
            }),
            Err(PackageError::Missing) => Some(package.missing()),
            Err(PackageError::Refused(refusal)) => Some(package.refused(&refusal)),
        };
        Ok(Some(Found { stamps, change }))
    }

    /// The trust file as it is now: an operator's change counts for the next load, an older file does not.
    fn trust(&self) -> Result<Trust, PackagesError> {
        // The operator's command may have replaced one file between our reading of it and of the next one.
        let (trust, digest) = self.read_trust().or_else(|_| self.read_trust())?;
        let seen = self.seen.fetch_max(trust.version, Ordering::Relaxed);
        let trust = trust.not_below(seen)?;
        *self.last.lock().expect("no thread panics with this lock") = Some((trust.version, digest));
        Ok(trust)
    }

    /// The version of the trust file that was in force at the last reading, and its SHA-256.
    pub(crate) fn trust_seen(&self) -> Option<(u64, String)> {
        self.last.lock().expect("no thread panics with this lock").clone()
    }

    /// Whether the operator has signed these bytes: with a key that may sign every package.
    pub(crate) fn is_signed_by_operator(
        &self,
        message: &[u8],
        signature: &[u8],
    ) -> Result<bool, PackagesError> {
        let (trust, now) = (self.trust()?, clock::unix_seconds());
        let is_operators = |key: &&TrustedKey| {
            key.models.iter().any(|models| models.as_str() == "*")
                && (key.not_before..key.not_after).contains(&now)
                && !trust.revoked_keys.contains(&key.public.id())
        };
        Ok(now < trust.expires
            && trust.keys.iter().filter(is_operators).any(|key| key.public.verifies(message, signature)))
    }

    /// The trust file that counts, and its SHA-256.
    fn read_trust(&self) -> Result<(Trust, String), PackagesError> {
        let read =
            |file: &'static str, max| self.home.read(file, max)?.ok_or(PackagesError::Missing { file });
        let root = read("root.pub", ROOT_BYTES_MAX)?;
        let root = std::str::from_utf8(&root)
            .map_err(|error| error.to_string())
            .and_then(|text| PublicKey::from_pem(text).map_err(|error| error.to_string()))
            .map_err(PackagesError::Root)?;
        let floor = read("trust.floor", FLOOR_BYTES_MAX)?;
        let current = read("trust.json", TRUST_BYTES_MAX)?;
        let next = self.home.read("trust.next", TRUST_BYTES_MAX)?;
        let files = TrustFiles { floor: &floor, current: &current, next: next.as_deref() };
        let (trust, _) = files.newest(&root)?;
        // One that a change which was cut off has left counts where the current one does not.
        let of_current = Trust::verify(&current, &root).is_ok_and(|current| current == trust);
        let bytes = if of_current { &current } else { next.as_ref().unwrap_or(&current) };
        Ok((trust, crate::keys::hex(&Sha256::digest(bytes))))
    }
}

/// Tensors that stay in quantised blocks, as workers are told of them.
fn kept_blocks(manifest: &Manifest) -> Vec<KeptBlocks> {
    let kind = |kind: &BlockType| match kind {
        BlockType::Q4_1 => protocol::BlockType::Q4_1,
        BlockType::Q8_0 => protocol::BlockType::Q8_0,
    };
    let of = |(block, tensors): (&BlockType, &BTreeMap<String, Vec<u64>>)| {
        let kind = kind(block);
        let kept = |(tensor, shape): (&String, &Vec<u64>)| KeptBlocks {
            tensor: tensor.clone(),
            kind,
            shape: shape.clone(),
        };
        tensors.iter().map(kept).collect::<Vec<_>>()
    };
    manifest.blocks().iter().flat_map(of).collect()
}

/// Packages hold more kinds of networks than this version's workers run.
fn surveyed(verified: &Verified, profiles: Vec<Profile>) -> Result<Surveyed, String> {
    let architecture = match verified.manifest.architecture() {
        ringfence_models::Architecture::Bert => protocol::Architecture::Bert,
        ringfence_models::Architecture::Whisper => protocol::Architecture::Whisper,
        ringfence_models::Architecture::Llama => protocol::Architecture::Llama,
        other @ ringfence_models::Architecture::SileroVad => {
            return Err(format!(
                "its signature holds, but this version does not run {} models",
                other.name()
            ));
        }
    };
    let blocks: usize = kept_blocks(&verified.manifest).iter().map(KeptBlocks::bytes_max).sum();
    if blocks > protocol::BLOCKS_BYTES_MAX {
        return Err(format!(
            "its signature holds, but names and shapes of its quantised tensors take {blocks} bytes, at most {} are taken",
            protocol::BLOCKS_BYTES_MAX
        ));
    }
    Ok(Surveyed {
        digest: verified.digest.to_string(),
        signer: verified.signer.to_string(),
        architecture,
        max_tokens: verified.manifest.max_tokens(),
        unverified_source: verified.manifest.is_unverified_source(),
        weight_bytes: verified.weight_bytes(),
        package_bytes: verified.worker_bytes(),
        files: verified.files.iter().map(|file| file.name.clone()).collect(),
        profiles,
    })
}
