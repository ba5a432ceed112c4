//! A package's memory profile on a device: what a worker takes, measured by a calibration run and kept outside the
//! signed package.
//!
//! ```text
//! in use once loaded     loaded.bytes + loaded.per_thread_bytes * threads
//! peak of the load       load_peak, in the same form
//! peak of a step         in use once loaded + step.bytes + step.per_token_bytes * tokens
//!                        + step.per_sequence_bytes * sequences
//! peak of a worker       the larger of the two peaks
//! ```
//!
//! All of it is what the worker's allocator hands out, or on a GPU its gate: what a lease is about. The package's own files are in memory that
//! the workers share, and are not in it.

use crate::digest::Digest;
use serde::{Deserialize, Serialize};

/// The folder of profiles in a home.
pub const PROFILES_FOLDER: &str = "profiles";
/// The longest profile in bytes.
pub const PROFILE_BYTES_MAX: usize = 64 * 1024;
/// How far a prediction may be from a measurement of a shape that the profile was not fitted to, in percent.
pub const DEVIATION_PERCENT_MAX: f64 = 10.0;

/// The most measurements in a profile.
const MEASURED_MAX: usize = 64;
/// The largest number of bytes that is believed.
const BYTES_MAX: u64 = 1 << 46;
/// The largest number of threads, sequences or tokens that is believed.
const COUNT_MAX: u32 = 1 << 24;
/// What is fitted: a constant, and what a token and a sequence add.
const TERMS: usize = 3;

/// A package's memory profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The package, by what [`crate::Verified::digest`] says.
    pub package: String,
    /// Where it was measured.
    pub device: ProfileDevice,
    /// Digest of the worker's build: another one may take other memory.
    pub worker: String,
    /// In use once loaded.
    pub loaded: PerThread,
    /// The most in use until then.
    pub load_peak: PerThread,
    /// What a step adds.
    pub step: Step,
    /// What this was fitted to.
    pub fitted: Vec<Measurement>,
    /// What it was compared with afterwards: other shapes.
    pub checked: Vec<Measurement>,
}

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileDevice {
    /// The CPU.
    Cpu,
    /// A GPU by way of Vulkan: figures are of its own memory.
    Wgpu,
}

/// Bytes that depend on the number of compute threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerThread {
    /// For any number.
    pub bytes: u64,
    /// For each thread, in bytes.
    pub per_thread_bytes: u64,
}

/// What a step adds, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// For any step.
    pub bytes: u64,
    /// For each token.
    pub per_token_bytes: u64,
    /// For each sequence.
    pub per_sequence_bytes: u64,
}

/// A worker that has loaded the package and run nothing yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadMeasurement {
    /// Compute threads.
    pub threads: u32,
    /// Bytes in use once loaded.
    pub used_bytes: u64,
    /// The most bytes in use until then.
    pub peak_bytes: u64,
}

/// A step that was run by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// Compute threads.
    pub threads: u32,
    /// Sequences, all of the same length.
    pub sequences: u32,
    /// Tokens of each.
    pub length: u32,
    /// The most bytes in use during the step, what is loaded included.
    pub peak_bytes: u64,
}

/// Why measurements make no profile, or a file is none.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ProfileError {
    /// They don't tell threads, tokens and sequences apart.
    #[error("the measurements are too few or too alike")]
    Undetermined,
    /// The form of the profile is not that of the model's memory.
    #[error(
        "{sequences} sequences of {length} tokens took {measured} bytes, {predicted} were predicted: more than \
         {DEVIATION_PERCENT_MAX}% apart"
    )]
    Deviates {
        /// The shape.
        sequences: u32,
        /// The shape.
        length: u32,
        /// Bytes.
        measured: u64,
        /// Bytes.
        predicted: u64,
    },
    /// The file is not a profile.
    #[error("it is no memory profile: {0}")]
    Malformed(String),
}

impl Profile {
    /// Fits a profile to what was measured, and compares it with measurements of other shapes.
    ///
    /// # Errors
    /// [`ProfileError::Undetermined`] and [`ProfileError::Deviates`].
    pub fn fit(
        package: &Digest,
        device: ProfileDevice,
        worker: &str,
        loads: [LoadMeasurement; 2],
        fitted: Vec<Measurement>,
        checked: Vec<Measurement>,
    ) -> Result<Self, ProfileError> {
        let loaded = PerThread::through(loads.map(|load| (load.threads, load.used_bytes)))?;
        let load_peak = PerThread::through(loads.map(|load| (load.threads, load.peak_bytes)))?;
        let step = Step::fit(&loaded, &fitted)?;
        let (package, worker) = (package.to_string(), worker.to_owned());
        let profile = Self { package, device, worker, loaded, load_peak, step, fitted, checked };
        match profile.worst() {
            Some((at, percent)) if percent > DEVIATION_PERCENT_MAX => Err(ProfileError::Deviates {
                sequences: at.sequences,
                length: at.length,
                measured: at.peak_bytes,
                predicted: profile.predicted(at),
            }),
            _ => Ok(profile),
        }
    }

    /// Name of the file in [`PROFILES_FOLDER`].
    pub fn file_name(package: &str, device: ProfileDevice) -> String {
        format!("{package}.{}.json", device.name())
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("numbers and texts encode");
        text.push('\n');
        text
    }

    /// Reads a file of at most [`PROFILE_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`ProfileError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ProfileError> {
        let malformed = |reason: String| ProfileError::Malformed(reason);
        if bytes.len() > PROFILE_BYTES_MAX {
            return Err(malformed(format!("it is longer than {PROFILE_BYTES_MAX} bytes")));
        }
        let profile: Self = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        if profile.is_legal() { Ok(profile) } else { Err(malformed("a number is out of bounds".to_owned())) }
    }

    /// Bytes in use once loaded.
    pub fn loaded_bytes(&self, threads: u32) -> u64 {
        self.loaded.at(threads)
    }

    /// The most bytes in use during a step, once loaded.
    pub fn step_bytes(&self, threads: u32, sequences: u32, tokens: u32) -> u64 {
        self.loaded_bytes(threads).saturating_add(self.step.at(sequences, tokens))
    }

    /// The most bytes that a worker takes which loads the package and runs steps of at most this size.
    pub fn peak_bytes(&self, threads: u32, sequences: u32, tokens: u32) -> u64 {
        self.load_peak.at(threads).max(self.step_bytes(threads, sequences, tokens))
    }

    /// The measurement of another shape that the profile predicts worst, and how far it is off in percent.
    pub fn worst(&self) -> Option<(&Measurement, f64)> {
        let deviations = self.checked.iter().map(|at| (at, percent(self.predicted(at), at.peak_bytes)));
        deviations.max_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    fn predicted(&self, at: &Measurement) -> u64 {
        self.step_bytes(at.threads, at.sequences, at.sequences.saturating_mul(at.length))
    }

    /// Bounds that keep every prediction far from overflow.
    fn is_legal(&self) -> bool {
        let Self { loaded, load_peak, step, fitted, checked, .. } = self;
        let bytes = [
            loaded.bytes,
            loaded.per_thread_bytes,
            load_peak.bytes,
            load_peak.per_thread_bytes,
            step.bytes,
            step.per_token_bytes,
            step.per_sequence_bytes,
        ];
        let is_legal = |at: &Measurement| {
            let counts = [at.threads, at.sequences, at.length];
            counts.iter().all(|count| (1..=COUNT_MAX).contains(count)) && at.peak_bytes <= BYTES_MAX
        };
        bytes.iter().all(|bytes| *bytes <= BYTES_MAX)
            && fitted.len() + checked.len() <= MEASURED_MAX
            && fitted.iter().chain(checked).all(is_legal)
    }
}

impl ProfileDevice {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Wgpu => "wgpu",
        }
    }
}

impl PerThread {
    /// The line through two numbers of threads. Fewer bytes with more threads are noise, and count as none.
    fn through([(few, a), (many, b)]: [(u32, u64); 2]) -> Result<Self, ProfileError> {
        let more = many.checked_sub(few).filter(|more| *more > 0).ok_or(ProfileError::Undetermined)?;
        let per_thread_bytes = b.saturating_sub(a).div_ceil(u64::from(more));
        Ok(Self { bytes: a.saturating_sub(per_thread_bytes * u64::from(few)), per_thread_bytes })
    }

    fn at(&self, threads: u32) -> u64 {
        self.bytes.saturating_add(self.per_thread_bytes.saturating_mul(u64::from(threads)))
    }
}

impl Step {
    fn fit(loaded: &PerThread, measured: &[Measurement]) -> Result<Self, ProfileError> {
        let row = |at: &Measurement| {
            let terms = [1.0, f64::from(at.sequences) * f64::from(at.length), f64::from(at.sequences)];
            (terms, at.peak_bytes.saturating_sub(loaded.at(at.threads)) as f64)
        };
        let rows: Vec<_> = measured.iter().map(row).collect();
        let [bytes, per_token_bytes, per_sequence_bytes] =
            least_squares(&rows).ok_or(ProfileError::Undetermined)?.map(|value| value.ceil().max(0.0) as u64);
        Ok(Self { bytes, per_token_bytes, per_sequence_bytes })
    }

    fn at(&self, sequences: u32, tokens: u32) -> u64 {
        let tokens = self.per_token_bytes.saturating_mul(u64::from(tokens));
        let sequences = self.per_sequence_bytes.saturating_mul(u64::from(sequences));
        self.bytes.saturating_add(tokens).saturating_add(sequences)
    }
}

fn percent(predicted: u64, measured: u64) -> f64 {
    predicted.abs_diff(measured) as f64 / (measured as f64).max(1.0) * 100.0
}

/// The weights of the terms whose sum comes closest to the values, by the normal equations; `None` where the rows don't
/// determine them.
fn least_squares(rows: &[([f64; TERMS], f64)]) -> Option<[f64; TERMS]> {
    // Each term divided by its largest value, so that no pivot is small only because of its unit.
    let mut scale = [0.0_f64; TERMS];
    for (terms, _) in rows {
        scale.iter_mut().zip(terms).for_each(|(scale, term)| *scale = scale.max(*term));
    }
    let mut system = [[0.0; TERMS + 1]; TERMS];
    for (terms, value) in rows {
        for (i, equation) in system.iter_mut().enumerate() {
            for (j, place) in equation.iter_mut().enumerate() {
                let right = terms.get(j).map_or(*value, |term| term / scale[j]);
                *place += terms[i] / scale[i] * right;
            }
        }
    }
    for at in 0..TERMS {
        let pivot = (at..TERMS).max_by(|a, b| system[*a][at].abs().total_cmp(&system[*b][at].abs()))?;
        system.swap(at, pivot);
        // No number: a term that is zero throughout.
        if system[at][at].is_nan() || system[at][at].abs() < PIVOT_MIN {
            return None;
        }
        for other in (0..TERMS).filter(|other| *other != at) {
            let factor = system[other][at] / system[at][at];
            let row = system[at];
            system[other].iter_mut().zip(row).for_each(|(place, term)| *place -= factor * term);
        }
    }
    Some(std::array::from_fn(|i| system[i][TERMS] / system[i][i] / scale[i]))
}

/// A smaller pivot of scaled terms is rounding: the shapes are alike.
const PIVOT_MIN: f64 = 1e-9;

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPES: [(u32, u32); 5] = [(1, 1), (1, 64), (16, 4), (64, 1), (8, 32)];

    fn loads() -> [LoadMeasurement; 2] {
        [(1, 1_000_100, 1_200_100), (4, 1_000_400, 1_200_100)]
            .map(|(threads, used_bytes, peak_bytes)| LoadMeasurement { threads, used_bytes, peak_bytes })
    }

    /// A worker that takes 700 bytes a step, 15,000 a token and 90 a sequence.
    fn measured(shapes: &[(u32, u32)]) -> Vec<Measurement> {
        let measure = |&(sequences, length): &(u32, u32)| {
            let step = 700 + 15_000 * u64::from(sequences * length) + 90 * u64::from(sequences);
            Measurement { threads: 4, sequences, length, peak_bytes: 1_000_400 + step }
        };
        shapes.iter().map(measure).collect()
    }

    fn fit(fitted: Vec<Measurement>, checked: Vec<Measurement>) -> Result<Profile, ProfileError> {
        let package = Digest::from_hex(&"5".repeat(64)).unwrap();
        Profile::fit(&package, ProfileDevice::Cpu, "build", loads(), fitted, checked)
    }

    #[test]
    fn a_profile_finds_what_the_measurements_are_made_of() {
        let profile = fit(measured(&SHAPES), measured(&[(3, 17), (31, 2)])).unwrap();
        assert_eq!(profile.loaded, PerThread { bytes: 1_000_000, per_thread_bytes: 100 });
        assert_eq!(profile.load_peak, PerThread { bytes: 1_200_100, per_thread_bytes: 0 });
        assert!(profile.step.per_token_bytes.abs_diff(15_000) <= 1, "{:?}", profile.step);
        assert!(profile.worst().unwrap().1 < 0.1);
        assert_eq!(profile.peak_bytes(2, 1, 1), 1_200_100, "the load takes more than a short step");
        let step = profile.peak_bytes(2, 1, 100);
        assert!(step.abs_diff(1_000_200 + 700 + 1_500_000 + 90) < 200, "{step}");
        assert_eq!(Profile::parse(profile.to_json().as_bytes()), Ok(profile));
    }

    #[test]
    fn memory_of_another_form_is_refused_with_the_shape_that_shows_it() {
        let mut other = measured(&[(2, 100)]);
        other[0].peak_bytes *= 2;
        let refused = fit(measured(&SHAPES), other).unwrap_err();
        assert!(matches!(refused, ProfileError::Deviates { sequences: 2, length: 100, .. }), "{refused}");
    }

    #[test]
    fn shapes_that_tell_nothing_apart_are_refused() {
        for shapes in [&[][..], &[(1, 1), (1, 64)], &[(4, 4); 8], &[(1, 1), (2, 1), (3, 1), (4, 1)]] {
            assert_eq!(
                fit(measured(shapes), Vec::new()).unwrap_err(),
                ProfileError::Undetermined,
                "{shapes:?}"
            );
        }
    }

    #[test]
    fn a_file_that_is_no_profile_is_refused() {
        let good = fit(measured(&SHAPES), Vec::new()).unwrap();
        let with = |change: fn(&mut Profile)| {
            let mut profile = good.clone();
            change(&mut profile);
            profile.to_json()
        };
        let wrong = [
            String::new(),
            good.to_json().replace("\"device\"", "\"devices\""),
            good.to_json().replace("\"cpu\"", "\"tpu\""),
            good.to_json().replacen('{', "{\"extra\":1,", 1),
            format!("{}{}", good.to_json(), " ".repeat(PROFILE_BYTES_MAX)),
            with(|profile| profile.step.per_token_bytes = u64::MAX),
            with(|profile| profile.fitted[0].threads = 0),
            with(|profile| profile.fitted = vec![profile.fitted[0]; MEASURED_MAX + 1]),
        ];
        for text in wrong {
            assert!(matches!(Profile::parse(text.as_bytes()), Err(ProfileError::Malformed(_))), "{text}");
        }
    }
}
