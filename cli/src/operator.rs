//! The operator's keys and passphrase.
