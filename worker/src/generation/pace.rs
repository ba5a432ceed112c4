//! How many rows a step may have, so that it lasts about as long as it should: by the steps before that were about as long.
//!
//! The time of a step does not grow with its rows alone, since the weights are read once for all of them; so it is kept for
//! each power of two.

/// Powers of two up to 512.
const SIZES: usize = 10;
/// Rows of the first step, of which nothing is known.
const ROWS_FIRST: usize = 32;

/// The speed of a generator.
#[derive(Debug)]
pub(super) struct StepPace {
    rows_max: usize,
    step_us: u64,
    /// Of steps with fewer than 2, 4, 8 ... rows, in microseconds; each counts a quarter. 0 where there was none.
    micros: [u64; SIZES],
}

impl StepPace {
    /// Steps of at most so many rows that should last so many microseconds.
    pub(super) fn new(rows_max: usize, step_us: u32) -> Self {
        Self { rows_max, step_us: u64::from(step_us), micros: [0; SIZES] }
    }

    /// Rows of the next step, at least 1: those of the largest size that was over in time. A larger one that was never tried
    /// is tried where it would be over in time if it took twice as long.
    pub(super) fn rows(&self) -> usize {
        let Some(known) = self.micros.iter().position(|micros| *micros > 0) else {
            return ROWS_FIRST.min(self.rows_max);
        };
        let was_in_time = |size: &usize| (1..=self.step_us).contains(&self.micros[*size]);
        let mut size = (0..SIZES).rev().find(was_in_time).unwrap_or(known);
        let mut expected = self.micros[size];
        while size > 0 && expected > self.step_us {
            (size, expected) = (size - 1, expected / 2);
        }
        while self.micros.get(size + 1) == Some(&0) && expected * 2 <= self.step_us {
            (size, expected) = (size + 1, expected * 2);
        }
        (1 << size).min(self.rows_max)
    }

    /// A step of so many rows has lasted so long.
    pub(super) fn measured(&mut self, rows: usize, busy_us: u64) {
        let size = (rows.max(1).ilog2() as usize).min(SIZES - 1);
        let before = &mut self.micros[size];
        *before = if *before == 0 { busy_us } else { *before / 4 * 3 + busy_us / 4 }.max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_become_as_long_as_they_should_be_though_weights_are_read_for_one_row_as_for_many() {
        // 20 ms for the weights, and 1 ms for each row.
        let mut pace = StepPace::new(512, 50_000);
        assert_eq!(pace.rows(), ROWS_FIRST);
        for _ in 0..20 {
            let rows = pace.rows();
            pace.measured(rows, 20_000 + 1_000 * rows as u64);
        }
        assert_eq!(pace.rows(), 16);
        // Answers alone don't say how long a prompt takes.
        (0..50).for_each(|_| pace.measured(1, 21_000));
        assert_eq!(pace.rows(), 16);
        let mut slow = StepPace::new(512, 50_000);
        slow.measured(32, 10_000_000);
        assert_eq!(slow.rows(), 1);
        let mut fast = StepPace::new(300, 50_000);
        (0..9).for_each(|_| fast.measured(fast.rows(), 10));
        assert_eq!(fast.rows(), 300);
    }
}
