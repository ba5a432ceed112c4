//! The signature bundle: the shape of OpenSSF Model Signing v1.0 with an ed25519 or P-256 key.
//!
//! Nothing of the signed statement is read before its signature held.

use crate::digest::{Digest, Hasher};
use crate::dsse::{self, Envelope, EnvelopeJson};
use crate::json::{self, Fault, Field, FieldError, Fields};
use crate::keys::{KeyId, SignBytes};
use crate::kind::{FileName, FileNameError, is_relative};
use crate::name::PackageName;
use crate::refusal::Refusal;
use crate::trust::Trust;
use serde::Serialize;
use std::collections::BTreeMap;

/// The longest bundle in bytes.
pub const BUNDLE_BYTES_MAX: usize = 256 * 1024;
/// The most files that a package has.
pub const FILES_MAX: usize = 256;

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// The longest name that is shown in a refusal.
const NAME_BYTES_MAX: usize = 256;

/// A bundle whose form is right; its signature is still to be checked.
#[derive(Debug)]
pub struct Bundle {
    signer: KeyId,
    envelope: Envelope,
}

/// What a bundle says, once its signature held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The key that signed it.
    pub signer: KeyId,
    /// SHA-256 over the digests of all files in the order of their names: what the package is.
    pub digest: Digest,
    /// Every file, in the order of their names.
    pub files: Vec<Resource>,
}

/// A file and what must be in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its name in the package.
    pub name: FileName,
    /// SHA-256 of its bytes.
    pub digest: Digest,
}

/// Signs a package: the text of its bundle, and its digest.
///
/// `files` are all its files in any order.
///
/// # Panics
/// Where two files have one name, or there are none or more than [`FILES_MAX`]: a package made by this crate has not.
pub fn sign(key: &dyn SignBytes, name: &PackageName, mut files: Vec<Resource>) -> (String, Digest) {
    files.sort_by(|a, b| a.name.cmp(&b.name));
    assert!((1..=FILES_MAX).contains(&files.len()), "a package has 1 to {FILES_MAX} files");
    assert!(files.is_sorted_by(|a, b| a.name < b.name), "names are unique");
    let digest = subject_digest(files.iter().map(|file| &file.digest));
    let payload = StatementJson::new(name, digest, &files).encode();
    let bundle = BundleJson {
        media_type: MEDIA_TYPE,
        verification_material: MaterialJson {
            public_key: PublicKeyJson { hint: key.public().id().to_string() },
            tlog_entries: [],
        },
        dsse_envelope: dsse::sign(PAYLOAD_TYPE, payload.as_bytes(), "", key),
    };
    (serde_json::to_string(&bundle).expect("texts encode"), digest)
}

impl Bundle {
    /// Reads a bundle.
    ///
    /// # Errors
    /// [`FieldError`], naming the first field that is not of our form.
    pub fn parse(bytes: &[u8]) -> Result<Self, FieldError> {
        let mut fields = json::parse(bytes, BUNDLE_BYTES_MAX)?;
        fields.constant("mediaType", MEDIA_TYPE)?;
        let mut material = fields.object("verificationMaterial")?;
        let mut public_key = material.object("publicKey")?;
        let signer = public_key.read("hint", KeyId::from_hex)?;
        public_key.end()?;
        material.list("tlogEntries", 0)?;
        material.end()?;
        let envelope = Envelope::read(fields.object("dsseEnvelope")?, PAYLOAD_TYPE)?;
        // The format names the key in `hint`.
        envelope.keyid(|keyid| keyid.is_empty().then_some(()))?;
        fields.end()?;
        Ok(Self { signer, envelope })
    }

    /// The key that the bundle names; anybody can write that.
    pub fn claimed_signer(&self) -> KeyId {
        self.signer
    }

    /// What the bundle says about the package `name`, if the trust file lets its signer say so at `now` (Unix
    /// seconds) and the signature holds.
    ///
    /// # Errors
    /// [`Refusal`], the first that applies: of the signer, the signature, the statement.
    pub fn verify(&self, name: &PackageName, trust: &Trust, now: u64) -> Result<Statement, Refusal> {
        let (signed_name, digest, listed) = self.statement(name, trust, now)?;
        if signed_name != name.as_str() {
            return Err(Refusal::NameMismatch(signed_name));
        }
        let files = listed.into_iter().map(known).collect::<Result<_, _>>()?;
        Ok(Statement { signer: self.signer, digest, files })
    }

    /// Whether a folder of somebody else's holds exactly what a trusted signer signed, if the trust file lets that signer
    /// sign packages of the name that the folder is to have here. What the folder was called there counts nothing.
    ///
    /// `found` are all its files, by relative names with `/`, in any order.
    ///
    /// # Errors
    /// [`Refusal`], the first that applies.
    pub fn verify_foreign(
        &self,
        name: &PackageName,
        trust: &Trust,
        now: u64,
        found: &BTreeMap<String, Digest>,
    ) -> Result<KeyId, Refusal> {
        let (_, _, listed) = self.statement(name, trust, now)?;
        for (file, signed) in &listed {
            let found = *found.get(file).ok_or_else(|| Refusal::FileMissing(file.clone()))?;
            if found != *signed {
                return Err(Refusal::DigestMismatch { file: file.clone(), signed: *signed, found });
            }
        }
        let is_listed = |name: &String| listed.iter().any(|(listed, _)| listed == name);
        match found.keys().find(|name| !is_listed(name)) {
            Some(unlisted) => Err(Refusal::FileUnlisted(unlisted.clone())),
            None => Ok(self.signer),
        }
    }

    /// What a trusted signer signed: the name, the digest over all files, and these.
    fn statement(
        &self,
        name: &PackageName,
        trust: &Trust,
        now: u64,
    ) -> Result<(String, Digest, Vec<Listed>), Refusal> {
        let key = trust.signer(self.signer, name, now)?;
        let payload = self.envelope.verify(key).ok_or(Refusal::SignatureInvalid)?;
        let fields = json::parse(payload, BUNDLE_BYTES_MAX).map_err(Refusal::BundleMalformed)?;
        let (signed_name, digest, files) = read_statement(fields)?;
        if subject_digest(files.iter().map(|(_, digest)| digest)) != digest {
            return Err(Refusal::SubjectMismatch);
        }
        if trust.revokes(digest) {
            return Err(Refusal::DigestRevoked(digest));
        }
        Ok((signed_name, digest, files))
    }
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        Self::BundleMalformed(error)
    }
}

/// A file's name, relative with `/` and leading nowhere else, and its digest.
type Listed = (String, Digest);

fn read_statement(mut fields: Fields) -> Result<(String, Digest, Vec<Listed>), Refusal> {
    fields.constant("_type", STATEMENT_TYPE)?;
    let (name, digest) = read_subject(fields.single("subject")?)?;
    fields.constant("predicateType", PREDICATE_TYPE)?;
    let mut predicate = fields.object("predicate")?;
    fields.end()?;
    let resources = predicate.list("resources", FILES_MAX)?;
    read_serialization(predicate.object("serialization")?)?;
    predicate.end()?;
    Ok((name, digest, read_resources(resources)?))
}

fn read_subject(mut subject: Fields) -> Result<(String, Digest), FieldError> {
    let name = subject.take("name")?.text(NAME_BYTES_MAX)?.to_owned();
    let mut digests = subject.object("digest")?;
    let digest = digests.read("sha256", Digest::from_hex)?;
    digests.end()?;
    subject.end()?;
    Ok((name, digest))
}

fn read_serialization(mut serialization: Fields) -> Result<(), Refusal> {
    serialization.constant("method", "files")?;
    serialization.constant("hash_type", "sha256")?;
    serialization.no("allow_symlinks")?;
    if let Some(ignored) = serialization.take_optional("ignore_paths")
        && !ignored.list(FILES_MAX)?.is_empty()
    {
        return Err(Refusal::IgnorePaths);
    }
    serialization.end()?;
    Ok(())
}

fn read_resources(list: Vec<Field>) -> Result<Vec<Listed>, Refusal> {
    let mut resources: Vec<Listed> = Vec::with_capacity(list.len());
    for field in list {
        let fault = |fault| field.fault(fault);
        let (twice, unordered) = (fault(Fault::Twice), fault(Fault::Unordered));
        let resource = read_resource(field)?;
        match resources.last().map(|last| last.0.cmp(&resource.0)) {
            None | Some(std::cmp::Ordering::Less) => resources.push(resource),
            Some(std::cmp::Ordering::Equal) => return Err(twice.into()),
            Some(std::cmp::Ordering::Greater) => return Err(unordered.into()),
        }
    }
    Ok(resources)
}

fn read_resource(field: Field) -> Result<Listed, Refusal> {
    let mut fields = field.object()?;
    let name_field = fields.take("name")?;
    let name = name_field.text(NAME_BYTES_MAX)?;
    if !is_relative(name) {
        return Err(name_field.fault(Fault::WrongValue).into());
    }
    let name = name.to_owned();
    let digest = fields.read("digest", Digest::from_hex)?;
    fields.constant("algorithm", "sha256")?;
    fields.end()?;
    Ok((name, digest))
}

/// A file of ours, which has one of the known kinds.
fn known((name, digest): Listed) -> Result<Resource, Refusal> {
    match FileName::new(&name) {
        Ok(name) => Ok(Resource { name, digest }),
        Err(FileNameError::Illegal | FileNameError::KindUnknown) => Err(Refusal::FileKindUnknown(name)),
    }
}

/// SHA-256 over the raw digests in the order of the files' names.
fn subject_digest<'a>(digests: impl Iterator<Item = &'a Digest>) -> Digest {
    let mut hasher = Hasher::default();
    digests.for_each(|digest| hasher.update(digest.as_bytes()));
    hasher.finish()
}

// The JSON that is written, its keys in the order of the format.

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BundleJson {
    media_type: &'static str,
    verification_material: MaterialJson,
    dsse_envelope: EnvelopeJson,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MaterialJson {
    public_key: PublicKeyJson,
    tlog_entries: [(); 0],
}

#[derive(Serialize)]
struct PublicKeyJson {
    hint: String,
}

#[derive(Serialize)]
struct StatementJson {
    #[serde(rename = "_type")]
    statement_type: &'static str,
    subject: [SubjectJson; 1],
    #[serde(rename = "predicateType")]
    predicate_type: &'static str,
    predicate: PredicateJson,
}

#[derive(Serialize)]
struct SubjectJson {
    name: String,
    digest: Sha256Json,
}

#[derive(Serialize)]
struct Sha256Json {
    sha256: String,
}

#[derive(Serialize)]
struct PredicateJson {
    resources: Vec<ResourceJson>,
    serialization: SerializationJson,
}

#[derive(Serialize)]
struct ResourceJson {
    name: String,
    digest: String,
    algorithm: &'static str,
}

#[derive(Serialize)]
struct SerializationJson {
    method: &'static str,
    hash_type: &'static str,
    allow_symlinks: bool,
}

impl StatementJson {
    fn new(name: &PackageName, digest: Digest, files: &[Resource]) -> Self {
        let resource = |file: &Resource| ResourceJson {
            name: file.name.to_string(),
            digest: file.digest.to_string(),
            algorithm: "sha256",
        };
        Self {
            statement_type: STATEMENT_TYPE,
            subject: [SubjectJson {
                name: name.to_string(),
                digest: Sha256Json { sha256: digest.to_string() },
            }],
            predicate_type: PREDICATE_TYPE,
            predicate: PredicateJson {
                resources: files.iter().map(resource).collect(),
                serialization: SerializationJson {
                    method: "files",
                    hash_type: "sha256",
                    allow_symlinks: false,
                },
            },
        }
    }

    fn encode(&self) -> String {
        serde_json::to_string(self).expect("texts encode")
    }
}
