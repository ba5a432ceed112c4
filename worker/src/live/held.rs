//! The sound of a stream that may still be needed, in order; overwritten when it is let go.

use std::ops::Range;
use zeroize::{Zeroize, Zeroizing};

/// Samples from a place in the stream on.
pub(super) struct Held {
    first: u64,
    samples: Zeroizing<Vec<i16>>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Held({:?})", self.first..self.end())
    }
}

impl Held {
    /// With room for so many samples, so that none is left behind where it grew.
    ///
    /// # Errors
    /// There is no memory: so many bytes.
    pub(super) fn new(room: usize) -> Result<Self, usize> {
        let mut samples = Vec::new();
        samples.try_reserve_exact(room).map_err(|_| room * size_of::<i16>())?;
        Ok(Self { first: 0, samples: samples.into() })
    }

    /// Where the next sample belongs.
    pub(super) fn end(&self) -> u64 {
        self.first + self.samples.len() as u64
    }

    /// Adds what comes next.
    ///
    /// # Panics
    /// If there is no room.
    pub(super) fn push(&mut self, samples: &[i16]) {
        assert!(self.samples.len() + samples.len() <= self.samples.capacity(), "room for {}", samples.len());
        self.samples.extend_from_slice(samples);
    }

    /// The samples of a part that is held.
    ///
    /// # Panics
    /// If it is not.
    pub(super) fn part(&self, part: Range<u64>) -> &[i16] {
        let place = |at: u64| usize::try_from(at - self.first).expect("no more is held than fits in memory");
        &self.samples[place(part.start)..place(part.end)]
    }

    /// Lets go what is before a place.
    pub(super) fn forget_until(&mut self, place: u64) {
        let count = place.clamp(self.first, self.end()) - self.first;
        if count == 0 {
            return;
        }
        let count = usize::try_from(count).expect("no more is held than fits in memory");
        let rest = self.samples.len() - count;
        self.samples.copy_within(count.., 0);
        self.samples[rest..].zeroize();
        self.samples.truncate(rest);
        self.first += count as u64;
    }

    /// Lets go everything, and goes on from another place.
    pub(super) fn restart(&mut self, at: u64) {
        self.samples.zeroize();
        self.first = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stay_where_they_are_while_the_beginning_goes() {
        let mut held = Held::new(10).unwrap();
        held.push(&[1, 2, 3, 4]);
        held.forget_until(1);
        held.push(&[5, 6]);
        assert_eq!((held.part(1..3), held.part(4..6), held.end()), (&[2, 3][..], &[5, 6][..], 6));
        held.forget_until(100);
        assert_eq!((held.part(6..6), held.end()), (&[][..], 6));
        held.restart(50);
        held.push(&[7]);
        assert_eq!((held.part(50..51), held.end()), (&[7][..], 51));
    }
}
