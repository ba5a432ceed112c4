//! How many tokens a step may have, so that it lasts about as long as it should: by the speed of the steps before.

/// The speed of a worker. Numbers only, so that it knows nothing of jobs.
#[derive(Debug)]
pub(crate) struct Pace {
    tokens_max: usize,
    step_us: u64,
    /// Of a token, in nanoseconds; each step counts a quarter. Unknown before the first.
    token_ns: Option<u64>,
}

impl Pace {
    /// Steps of at most so many tokens that should last so many microseconds.
    pub(crate) fn new(tokens_max: u32, step_us: u32) -> Self {
        Self { tokens_max: tokens_max as usize, step_us: u64::from(step_us), token_ns: None }
    }

    /// Tokens of the next step, at least 1.
    pub(crate) fn tokens(&self) -> usize {
        let Some(token_ns) = self.token_ns else { return self.tokens_max };
        let fitting = self.step_us.saturating_mul(1_000) / token_ns.max(1);
        usize::try_from(fitting).unwrap_or(usize::MAX).clamp(1, self.tokens_max)
    }

    /// What so many tokens take, in microseconds, once that is known.
    pub(crate) fn expected_us(&self, tokens: usize) -> Option<u64> {
        self.token_ns.map(|token_ns| token_ns.saturating_mul(tokens as u64) / 1_000)
    }

    /// A step has lasted so long.
    pub(crate) fn measured(&mut self, tokens: usize, busy_us: u64) {
        let now = busy_us.saturating_mul(1_000) / tokens.max(1) as u64;
        self.token_ns = Some(self.token_ns.map_or(now, |before| before / 4 * 3 + now / 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_become_as_long_as_they_should_be() {
        let mut pace = Pace::new(512, 20_000);
        assert_eq!(pace.tokens(), 512);
        pace.measured(512, 51_200);
        assert_eq!(pace.tokens(), 200);
        assert_eq!(pace.expected_us(1_000), Some(100_000));
        (0..50).for_each(|_| pace.measured(200, 10_000));
        assert!((390..=410).contains(&pace.tokens()), "{}", pace.tokens());
        (0..50).for_each(|_| pace.measured(1, 10_000_000));
        assert_eq!(pace.tokens(), 1);
        (0..200).for_each(|_| pace.measured(100, 0));
        assert_eq!(pace.tokens(), 512);
    }
}
