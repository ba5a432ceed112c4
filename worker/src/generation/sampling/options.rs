//! The parameters of sampling, checked once.

/// The most tokens with a bias, as OpenAI has it.
pub const LOGIT_BIAS_MAX: usize = 300;
/// The most log probabilities of a place, as OpenAI and vLLM have it.
pub const LOGPROBS_MAX: u8 = 20;
/// The largest repetition penalty. No server states one; 1.3 is already strong.
pub const REPETITION_PENALTY_MAX: f32 = 10.0;
/// The smallest, which rewards repetition; below it a logit may become infinite.
const REPETITION_PENALTY_MIN: f32 = 0.01;
/// OpenAI's largest temperature.
const TEMPERATURE_MAX: f32 = 2.0;
/// OpenAI's bounds of presence and frequency penalties.
const PENALTY_MAX: f32 = 2.0;
/// OpenAI's bounds of a bias.
const BIAS_MAX: f32 = 100.0;

/// What a client asks for; the default is the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// From 0, which takes the likeliest token, to 2.
    pub temperature: f32,
    /// Only so many of the likeliest tokens are drawn from; 0 is off.
    pub top_k: u32,
    /// Only the likeliest tokens whose probabilities sum up to this are drawn from, from 0 (the likeliest alone) to 1 (off).
    pub top_p: f32,
    /// Only tokens at least this times as likely as the likeliest are drawn from, from 0 (off) to 1.
    pub min_p: f32,
    /// Divides positive logits of tokens that were there, in the prompt or the answer, and multiplies negative ones; 1 is
    /// off (Keskar et al. 2019, "CTRL").
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that are in the answer, from -2 to 2.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens for each time that they are in the answer, from -2 to 2.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens, from -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Whether log probabilities are given, and of how many of the likeliest tokens.
    pub logprobs: Option<u8>,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: None,
            seed: 0,
        }
    }
}

/// Which parameter is out of bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SamplingError {
    /// `temperature`
    #[error("`temperature` must be from 0 to 2")]
    Temperature,
    /// `top_p`
    #[error("`top_p` must be from 0 to 1")]
    TopP,
    /// `min_p`
    #[error("`min_p` must be from 0 to 1")]
    MinP,
    /// `repetition_penalty`
    #[error("`repetition_penalty` must be from 0.01 to 10")]
    RepetitionPenalty,
    /// `presence_penalty`
    #[error("`presence_penalty` must be from -2 to 2")]
    PresencePenalty,
    /// `frequency_penalty`
    #[error("`frequency_penalty` must be from -2 to 2")]
    FrequencyPenalty,
    /// Too many tokens with a bias.
    #[error("`logit_bias` has too many tokens, at most 300 are taken")]
    Biases,
    /// A bias is out of bounds.
    #[error("`logit_bias` must be from -100 to 100")]
    Bias,
    /// A token has two biases.
    #[error("`logit_bias` has the token {0} twice")]
    BiasTwice(u32),
    /// A token with a bias is beyond the vocabulary.
    #[error("`logit_bias` has the token {0}, which the model doesn't know")]
    BiasOfUnknownToken(u32),
    /// `logprobs`
    #[error("at most 20 log probabilities are given")]
    Logprobs,
}

/// Parameters within their bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling(SamplingOptions);

impl Sampling {
    /// Checks the parameters; what is no number is out of bounds.
    ///
    /// # Errors
    /// The first parameter that is out of bounds.
    pub fn new(mut options: SamplingOptions) -> Result<Self, SamplingError> {
        let within = |value: f32, max: f32, error| if value.abs() <= max { Ok(()) } else { Err(error) };
        let from_zero =
            |value: f32, max: f32, error| if (0.0..=max).contains(&value) { Ok(()) } else { Err(error) };
        from_zero(options.temperature, TEMPERATURE_MAX, SamplingError::Temperature)?;
        from_zero(options.top_p, 1.0, SamplingError::TopP)?;
        from_zero(options.min_p, 1.0, SamplingError::MinP)?;
        let repetition = REPETITION_PENALTY_MIN..=REPETITION_PENALTY_MAX;
        if !repetition.contains(&options.repetition_penalty) {
            return Err(SamplingError::RepetitionPenalty);
        }
        within(options.presence_penalty, PENALTY_MAX, SamplingError::PresencePenalty)?;
        within(options.frequency_penalty, PENALTY_MAX, SamplingError::FrequencyPenalty)?;
        if options.logit_bias.len() > LOGIT_BIAS_MAX {
            return Err(SamplingError::Biases);
        }
        options.logit_bias.iter().try_for_each(|(_, bias)| within(*bias, BIAS_MAX, SamplingError::Bias))?;
        options.logit_bias.sort_unstable_by_key(|(id, _)| *id);
        if let Some(pair) = options.logit_bias.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(SamplingError::BiasTwice(pair[0].0));
        }
        if options.logprobs.is_some_and(|count| count > LOGPROBS_MAX) {
            return Err(SamplingError::Logprobs);
        }
        Ok(Self(options))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut SamplingOptions), expected: Result<(), SamplingError>) {
        let mut options = SamplingOptions::default();
        change(&mut options);
        assert_eq!(Sampling::new(options).map(|_| ()), expected);
    }

    #[test]
    fn each_parameter_has_bounds_and_none_is_taken_beyond_them() {
        use SamplingError::*;
        for (value, expected) in
            [(0.0, Ok(())), (2.0, Ok(())), (2.1, Err(Temperature)), (-0.1, Err(Temperature))]
        {
            check(|options| options.temperature = value, expected);
        }
        for value in [f32::NAN, f32::INFINITY, -f32::INFINITY] {
            check(|options| options.temperature = value, Err(Temperature));
            check(|options| options.top_p = value, Err(TopP));
            check(|options| options.min_p = value, Err(MinP));
            check(|options| options.repetition_penalty = value, Err(RepetitionPenalty));
            check(|options| options.presence_penalty = value, Err(PresencePenalty));
            check(|options| options.frequency_penalty = value, Err(FrequencyPenalty));
            check(|options| options.logit_bias = vec![(1, value)], Err(Bias));
        }
        check(|options| options.top_p = 0.0, Ok(()));
        check(|options| options.top_p = 1.01, Err(TopP));
        check(|options| options.min_p = 1.01, Err(MinP));
        check(|options| options.repetition_penalty = 0.0, Err(RepetitionPenalty));
        check(|options| options.repetition_penalty = 10.0, Ok(()));
        check(|options| options.presence_penalty = -2.0, Ok(()));
        check(|options| options.frequency_penalty = 2.01, Err(FrequencyPenalty));
        check(|options| options.logprobs = Some(20), Ok(()));
        check(|options| options.logprobs = Some(21), Err(Logprobs));
    }

    #[test]
    fn biases_are_bounded_in_size_and_number_and_each_token_has_one() {
        use SamplingError::*;
        check(|options| options.logit_bias = (0..300).map(|id| (id, 100.0)).collect(), Ok(()));
        check(|options| options.logit_bias = (0..301).map(|id| (id, 0.0)).collect(), Err(Biases));
        check(|options| options.logit_bias = vec![(7, -100.5)], Err(Bias));
        check(|options| options.logit_bias = vec![(7, 1.0), (5, 1.0), (7, 2.0)], Err(BiasTwice(7)));
    }
}
