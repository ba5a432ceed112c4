//! Entries: what happened, as a closed list, in the one canonical form of RFC 8785.

use crate::mask::{Masked, Word};
use crate::tiles::ENTRY_BYTES_MAX;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The largest number that JSON carries exactly everywhere.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;

/// One line of the log: who, when, by which request, and what.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Milliseconds since 1970, as the clock said. The order of the log is the truth, not this.
    pub time_ms: u64,
    /// `back` where that is before the time of the entry before. The log sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
    /// The server's run; grants and jobs are numbered anew in each.
    pub run: Word,
    /// The request that it belongs to, the same in every program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Word>,
    /// The client's session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Word>,
    /// The client's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Masked>,
    /// The user id of the process on the other end, where the kernel said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// How the clock went.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// Backwards.
    Back,
}

/// What a grant is for.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Reading files.
    FileRead,
    /// Writing files.
    FileWrite,
    /// Capturing audio.
    AudioCapture,
    /// Running a model.
    Infer,
}

/// What was decided about a grant.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Yes.
    Approved,
    /// No.
    Denied,
}

/// Who decided.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decider {
    /// The operator.
    Operator,
    /// The operator, with a signature by his key.
    OperatorKey,
    /// A rule that was set beforehand.
    Rule,
    /// Nobody in time.
    Nobody,
}

/// What was done to a client, a key or a signer.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is new.
    Added,
    /// It is another now.
    Changed,
    /// It is gone.
    Removed,
}

/// What happened. Texts of clients are masked, contents have no place here.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// The server began to serve.
    ServerStarted {
        /// Its version.
        version: Word,
        /// Bytes of an unfinished write that recovery dropped from the log's end.
        dropped_bytes: u64,
    },
    /// The server ended in order.
    ServerStopped,
    /// A client asked for a grant.
    GrantRequested {
        /// Its number in this run.
        grant: u64,
        /// For what.
        access: Access,
        /// The file or folder, or the source of audio.
        path: Masked,
        /// Which model it is for.
        audience: Word,
        /// Why, in the client's words.
        reason: Masked,
        /// For how long.
        lifetime_ms: u64,
        /// How many bytes.
        bytes_max: u64,
        /// Whether copies may be handed over, which can't be called back.
        snapshot: bool,
    },
    /// Somebody said yes or no.
    GrantDecided {
        /// Its number in this run.
        grant: u64,
        /// Yes or no.
        decision: Decision,
        /// Who.
        by: Decider,
        /// Until when, where it was approved.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until_ms: Option<u64>,
    },
    /// A client made a smaller grant of one.
    GrantNarrowed {
        /// The new one's number.
        grant: u64,
        /// The old one's.
        from: u64,
        /// What is left of the path.
        path: Masked,
    },
    /// A grant was used for the first time. What used it has the same request.
    GrantUsed {
        /// Its number in this run.
        grant: u64,
        /// What was opened.
        path: Masked,
    },
    /// A use of a grant ended.
    GrantUseEnded {
        /// Its number in this run.
        grant: u64,
        /// What was opened.
        path: Masked,
        /// Bytes that were served.
        bytes: u64,
        /// `blake3:` and their keyed BLAKE3, in the order in which they were served.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<Word>,
        /// `ok`, or why not.
        result: Word,
    },
    /// A grant ended.
    GrantClosed {
        /// Its number in this run.
        grant: u64,
        /// `expired`, `revoked`, `used_up` or another reason.
        result: Word,
        /// How often it was used.
        uses: u64,
        /// Bytes that were served in all.
        bytes: u64,
    },
    /// A job ended.
    JobEnded {
        /// Its number in this run.
        job: u64,
        /// The model.
        model: Word,
        /// The digest of its package.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<Word>,
        /// A grant that it read by.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grant: Option<u64>,
        /// `ok`, or the code of the error.
        result: Word,
        /// Device time.
        device_ms: u64,
        /// Tokens that were run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tokens: Option<u64>,
    },
    /// A model was loaded.
    ModelLoaded {
        /// Its name.
        model: Word,
        /// The digest of its package.
        digest: Word,
        /// The id of the key that signed it.
        signer: Word,
    },
    /// A model was not loaded, or is not what it was on the disk.
    ModelRefused {
        /// Its name.
        model: Word,
        /// Why.
        result: Word,
    },
    /// One client's refusals of one kind within a second.
    Refused {
        /// Why.
        code: Word,
        /// How many.
        count: u64,
    },
    /// There was not enough memory.
    OutOfMemory {
        /// What stopped it.
        rung: Word,
        /// The model.
        model: Word,
        /// Where.
        device: Word,
        /// The job that was affected.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<u64>,
    },
    /// A worker was stopped.
    WorkerKilled {
        /// Its number.
        worker: u64,
        /// Its model.
        model: Word,
        /// Why.
        reason: Word,
    },
    /// A worker ended by itself, without having been told to.
    WorkerDied {
        /// Its number.
        worker: u64,
        /// Its model.
        model: Word,
        /// How, as far as the kernel says: `signal_11`, `exit_1` or `vanished`.
        reason: Word,
    },
    /// What clients, models and devices may take has changed.
    QuotasChanged {
        /// SHA-256 of the new text.
        digest: Word,
    },
    /// Whose signatures count has changed.
    TrustChanged {
        /// The trust file's version.
        version: u64,
        /// SHA-256 of it.
        digest: Word,
    },
    /// A client was added or removed.
    ClientChanged {
        /// Its name.
        name: Masked,
        /// What was done.
        change: Change,
    },
    /// An API key was added or revoked.
    KeyChanged {
        /// The key's public prefix.
        key: Word,
        /// What was done.
        change: Change,
    },
    /// Audio is captured from now on.
    AudioStarted {
        /// By which grant.
        grant: u64,
        /// From where.
        source: Masked,
    },
    /// It is captured no more.
    AudioStopped {
        /// By which grant.
        grant: u64,
        /// How much.
        captured_ms: u64,
        /// Why.
        result: Word,
    },
    /// Bundles of old entries were removed after this; their hashes stay.
    Pruned {
        /// No entry from this index on was.
        before: u64,
    },
}

impl Event {
    /// The grant that it is about.
    pub fn grant(&self) -> Option<u64> {
        match self {
            Self::GrantRequested { grant, .. }
            | Self::GrantDecided { grant, .. }
            | Self::GrantNarrowed { grant, .. }
            | Self::GrantUsed { grant, .. }
            | Self::GrantUseEnded { grant, .. }
            | Self::GrantClosed { grant, .. }
            | Self::AudioStarted { grant, .. }
            | Self::AudioStopped { grant, .. } => Some(*grant),
            Self::JobEnded { grant, .. } => *grant,
            Self::ServerStarted { .. }
            | Self::ServerStopped
            | Self::ModelLoaded { .. }
            | Self::ModelRefused { .. }
            | Self::Refused { .. }
            | Self::OutOfMemory { .. }
            | Self::WorkerKilled { .. }
            | Self::WorkerDied { .. }
            | Self::QuotasChanged { .. }
            | Self::TrustChanged { .. }
            | Self::ClientChanged { .. }
            | Self::KeyChanged { .. }
            | Self::Pruned { .. } => None,
        }
    }
}

/// Why an entry can't be written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A number is above [`NUMBER_MAX`], from where JSON readers round.
    #[error("an entry has a number above 2^53 - 1")]
    Number,
    /// It is longer than an entry may be.
    #[error("an entry is longer than {ENTRY_BYTES_MAX} bytes")]
    TooLong,
    /// It is no entry of this version.
    #[error("is no entry that this version knows")]
    Unknown,
    /// It is one, but not in the canonical form.
    #[error("is not in the canonical form")]
    Form,
}

impl Entry {
    /// Something that nobody asked for in a request.
    pub fn of_server(time_ms: u64, run: Word, event: Event) -> Self {
        Self { time_ms, clock: None, run, request: None, session: None, client: None, uid: None, event }
    }

    /// The bytes that the log holds: JSON by RFC 8785.
    ///
    /// # Errors
    /// [`EntryError::Number`], [`EntryError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, EntryError> {
        let value = serde_json::to_value(self).expect("an entry has string keys only");
        let mut text = String::new();
        canonical(&value, &mut text)?;
        if text.len() > ENTRY_BYTES_MAX { Err(EntryError::TooLong) } else { Ok(text.into_bytes()) }
    }

    /// From those bytes, and no others that say the same.
    ///
    /// # Errors
    /// [`EntryError::Unknown`], [`EntryError::Form`].
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        let entry: Self = serde_json::from_slice(bytes).map_err(|_| EntryError::Unknown)?;
        if entry.encode().is_ok_and(|encoded| encoded == bytes) { Ok(entry) } else { Err(EntryError::Form) }
    }
}

/// RFC 8785 for what entries are made of: keys sorted (ours are ASCII), strings as serde writes them, whole numbers.
fn canonical(value: &Value, text: &mut String) -> Result<(), EntryError> {
    match value {
        Value::Number(number) if number.as_u64().is_none_or(|number| number > NUMBER_MAX) => {
            return Err(EntryError::Number);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text.push_str(&value.to_string())
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                canonical(item, text)?;
            }
            text.push(']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(key, _)| *key);
            text.push('{');
            for (index, (key, field)) in fields.into_iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                canonical(&Value::from(key.as_str()), text)?;
                text.push(':');
                canonical(field, text)?;
            }
            text.push('}');
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn our_canonical_form_is_that_of_another_implementation(
            text in any::<String>(), number in 0..=NUMBER_MAX, keys in prop::collection::vec("[a-z_0-9]{1,6}", 0..6), yes: bool,
        ) {
            let mut object = serde_json::Map::new();
            for key in keys.iter().rev() {
                object.insert(key.clone(), Value::from(text.as_str()));
            }
            let value = serde_json::json!({"z": number, "a": [object, yes, null], "m": text});
            let mut ours = String::new();
            canonical(&value, &mut ours).unwrap();
            prop_assert_eq!(ours, serde_json_canonicalizer::to_string(&value).unwrap());
        }
    }

    #[test]
    fn an_entry_survives_its_one_form() {
        let run = Word::new("r1").unwrap();
        let event = Event::Refused { code: Word::new("rate_jobs").unwrap(), count: 3 };
        let mut entry =
            Entry { uid: Some(1000), client: Some(Masked([7; 32])), ..Entry::of_server(5, run, event) };
        let bytes = entry.encode().unwrap();
        let mask = "07".repeat(32);
        let expected = format!(
            r#"{{"client":"hmac:{mask}","code":"rate_jobs","count":3,"kind":"refused","run":"r1","time_ms":5,"uid":1000}}"#
        );
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), expected);
        assert_eq!(Entry::decode(&bytes), Ok(entry.clone()));
        assert_eq!(Entry::decode(expected.replace(":3", ": 3").as_bytes()), Err(EntryError::Form));
        assert_eq!(
            Entry::decode(expected.replace("refused", "praised").as_bytes()),
            Err(EntryError::Unknown)
        );
        entry.time_ms = NUMBER_MAX + 1;
        assert_eq!(entry.encode(), Err(EntryError::Number));
    }
}
