//! The parameters of sampling.

use ringfence_protocol::GenerateOptions;

/// What a job asks for; whoever took the job has seen that it is within the protocol's bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling(GenerateOptions);

impl Sampling {
    /// Of a job.
    ///
    /// # Panics
    /// An option is out of bounds.
    pub fn new(mut options: GenerateOptions) -> Self {
        assert_eq!(options.out_of_bounds(), None, "a job is taken with legal options only");
        options.logit_bias.sort_unstable_by_key(|(id, _)| *id);
        Self(options)
    }

    /// The likeliest token is taken, without a random number.
    pub(super) fn is_greedy(&self) -> bool {
        self.0.temperature == 0.0
    }

    pub(super) fn temperature(&self) -> f32 {
        self.0.temperature
    }

    /// How many of the likeliest tokens are drawn from, where that is fewer than the vocabulary.
    pub(super) fn top_k(&self, vocabulary: usize) -> Option<usize> {
        let wanted = self.0.top_k as usize;
        Some(wanted).filter(|count| (1..vocabulary).contains(count))
    }

    pub(super) fn top_p(&self) -> Option<f64> {
        Some(f64::from(self.0.top_p)).filter(|mass| *mass < 1.0)
    }

    pub(super) fn min_p(&self) -> f32 {
        self.0.min_p
    }

    pub(super) fn repetition_penalty(&self) -> f32 {
        self.0.repetition_penalty
    }

    pub(super) fn presence_penalty(&self) -> f32 {
        self.0.presence_penalty
    }

    pub(super) fn frequency_penalty(&self) -> f32 {
        self.0.frequency_penalty
    }

    /// By ascending id.
    pub(super) fn logit_bias(&self) -> &[(u32, f32)] {
        &self.0.logit_bias
    }

    pub(super) fn logprobs(&self) -> Option<usize> {
        self.0.logprobs.map(usize::from)
    }

    pub(super) fn seed(&self) -> u64 {
        self.0.seed
    }
}
