//! Where phrases begin and end in a live sound, by how likely it is in each piece of it that somebody speaks. It keeps no
//! sound; time is a count of samples since the stream began.
//!
//! ```text
//!           onset                        end
//! ..........|#########...######..########|...................
//!     |<----+------------ sound ---------+--->|               heard as one phrase
//!    from  start                        end   to
//!                                        |<--- pause --->|    after which it is over
//! ```

use std::ops::Range;

/// Samples of a millisecond.
const MS: u64 = 16;
/// Speech begins where it is as likely as this, and goes on until it is less likely than the other: as in Silero's own
/// `get_speech_timestamps`.
const ONSET: f32 = 0.5;
const END: f32 = 0.35;
/// Speech that is shorter is a noise.
const SPEECH_MIN: u64 = 200 * MS;
/// A silence after which what was said so far may have been all.
pub(super) const REST: u64 = 150 * MS;
/// A silence that ends a phrase. With what a worker takes afterwards it is the latency of a text.
const PAUSE: u64 = 350 * MS;
/// Sound before the onset, which the detector notices late.
const PADDING: u64 = 240 * MS;
/// The longest sound of a phrase: what a model hears at a time is 30 seconds.
pub(super) const PHRASE_MAX: u64 = 28_000 * MS;

/// Something that was said, in samples of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Phrase {
    /// What to hear: with some of the silence on both sides.
    pub(super) sound: Range<u64>,
    /// Where somebody speaks.
    pub(super) speech: Range<u64>,
}

/// A phrase that is not over.
#[derive(Debug)]
struct Open {
    from: u64,
    start: u64,
    /// Since when nobody speaks.
    silent_since: Option<u64>,
    /// It goes on from one that was cut, however short the rest is.
    is_rest: bool,
    /// How loud each piece is, the first of which begins at `pieces_from`.
    loudness: Vec<f32>,
    pieces_from: u64,
}

/// The phrases of one sound.
#[derive(Debug)]
pub(super) struct Phrases {
    /// Samples of a piece.
    piece: u64,
    /// Where the next piece begins.
    at: u64,
    /// Nothing before it belongs to a later phrase.
    floor: u64,
    open: Option<Open>,
}

impl Phrases {
    /// Of a sound that is looked at in pieces of so many samples.
    pub(super) fn new(piece: usize) -> Self {
        Self { piece: piece as u64, at: 0, floor: 0, open: None }
    }

    /// Takes the next piece: how likely it is that somebody speaks in it, and how loud it is by any measure. A phrase that
    /// ends by it.
    pub(super) fn take(&mut self, probability: f32, loudness: f32) -> Option<Phrase> {
        let begin = self.at;
        self.at += self.piece;
        let Some(open) = &mut self.open else {
            if probability >= ONSET {
                self.open = Some(Open::new(begin, self.floor, loudness));
            }
            return None;
        };
        open.loudness.push(loudness);
        if probability >= ONSET {
            open.silent_since = None;
        } else if probability < END && open.silent_since.is_none() {
            open.silent_since = Some(begin);
        }
        if open.silent_since.is_some_and(|since| self.at - since >= PAUSE) {
            return self.close(self.at);
        }
        if self.at + self.piece - open.from > PHRASE_MAX {
            return Some(self.cut());
        }
        None
    }

    /// Ends the phrase that is open, if there is one: what comes next is of another sound, and begins at `at`, where the
    /// one before ends or later.
    pub(super) fn end(&mut self, sound_end: u64, next: u64) -> Option<Phrase> {
        let phrase = self.close(sound_end);
        (self.at, self.floor) = (next, next);
        phrase
    }

    /// Where speech ended, if it has for a while in the phrase that is open, and long enough to be worth a look.
    pub(super) fn rests_since(&self) -> Option<u64> {
        let open = self.open.as_ref()?;
        let since = open.silent_since?;
        (self.at - since >= REST && open.is_speech(since)).then_some(since)
    }

    /// Where the sound and the speech of the phrase begin that is open.
    pub(super) fn open(&self) -> Option<(u64, u64)> {
        self.open.as_ref().map(|open| (open.from, open.start))
    }

    /// Where the next piece begins.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Nothing before this place is needed any more.
    pub(super) fn needed_from(&self) -> u64 {
        self.open.as_ref().map_or(self.at.saturating_sub(PADDING).max(self.floor), |open| open.from)
    }

    fn close(&mut self, sound_end: u64) -> Option<Phrase> {
        let open = self.open.take()?;
        let end = open.silent_since.unwrap_or(sound_end);
        let to = sound_end.min(end + REST);
        self.floor = to;
        open.is_speech(end).then_some(Phrase { sound: open.from..to, speech: open.start..end })
    }

    /// Ends a phrase that is too long where it is quietest in its second half, and begins the next there.
    fn cut(&mut self) -> Phrase {
        let piece = self.piece;
        let open = self.open.as_mut().expect("a phrase that is too long is open");
        let place = |count: usize| open.pieces_from + count as u64 * piece;
        let half = open.loudness.len() / 2;
        let quietest = (half..open.loudness.len())
            .min_by(|a, b| open.loudness[*a].total_cmp(&open.loudness[*b]))
            .expect("a phrase that is too long has a second half");
        // What was silent before the cut and has been since is nobody's speech.
        let cut = place(quietest).max(open.start + 1);
        let speech = open.start..open.silent_since.map_or(cut, |since| since.min(cut));
        let phrase = Phrase { sound: open.from..cut, speech };
        open.loudness.drain(..quietest);
        (open.pieces_from, open.from, open.start) = (cut, cut, cut);
        open.silent_since = open.silent_since.map(|since| since.max(cut));
        open.is_rest = true;
        phrase
    }
}

impl Open {
    fn new(onset: u64, floor: u64, loudness: f32) -> Self {
        let from = onset.saturating_sub(PADDING).max(floor);
        let loudness = vec![loudness];
        Self { from, start: onset, silent_since: None, is_rest: false, loudness, pieces_from: onset }
    }

    /// Whether what is said until then is more than a noise.
    fn is_speech(&self, end: u64) -> bool {
        let least = if self.is_rest { 1 } else { SPEECH_MIN };
        end >= self.start + least
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PIECE: u64 = 512;

    fn run(probabilities: &[f32]) -> Vec<Phrase> {
        let mut phrases = Phrases::new(PIECE as usize);
        let mut found: Vec<Phrase> = probabilities
            .iter()
            .enumerate()
            .filter_map(|(at, p)| phrases.take(*p, (at * 7919 % 1000) as f32))
            .collect();
        let end = probabilities.len() as u64 * PIECE;
        found.extend(phrases.end(end, end));
        found
    }

    fn pieces(parts: &[(f32, usize)]) -> Vec<f32> {
        parts.iter().flat_map(|(p, count)| std::iter::repeat_n(*p, *count)).collect()
    }

    fn phrase(sound: Range<u64>, speech: Range<u64>) -> Phrase {
        let samples = |range: Range<u64>| range.start * PIECE..range.end * PIECE;
        Phrase { sound: samples(sound), speech: samples(speech) }
    }

    #[test]
    fn a_phrase_ends_after_a_pause_and_has_some_silence_around_it() {
        let mut phrases = Phrases::new(PIECE as usize);
        let sound = pieces(&[(0.1, 20), (0.9, 20), (0.2, 30)]);
        let mut rested = None;
        let mut ended = None;
        for (at, p) in sound.iter().enumerate() {
            if let Some(phrase) = phrases.take(*p, 0.0) {
                ended = Some((at, phrase));
            }
            if phrases.rests_since().is_some() && rested.is_none() {
                rested = Some((at, phrases.rests_since()));
            }
        }
        // 150 ms are five pieces, 350 ms eleven.
        assert_eq!(rested, Some((44, Some(40 * PIECE))));
        let sound = 20 * PIECE - PADDING..40 * PIECE + REST;
        assert_eq!(ended, Some((50, Phrase { sound, speech: 20 * PIECE..40 * PIECE })));
    }

    #[test]
    fn short_silences_are_of_a_phrase_and_short_noises_are_none() {
        let gap = run(&pieces(&[(0.9, 10), (0.0, 10), (0.9, 10), (0.0, 20)]));
        assert!(gap.len() == 1 && gap[0].speech == (0..30 * PIECE), "{gap:?}");
        assert_eq!(run(&pieces(&[(0.0, 10), (0.9, 6), (0.0, 20)])), []);
        // What is neither nor goes on as it was.
        assert_eq!(
            run(&pieces(&[(0.4, 10), (0.9, 10), (0.4, 40)])),
            [phrase(3..60, 10..60)].map(|mut phrase| {
                phrase.sound.start = 10 * PIECE - PADDING;
                phrase
            })
        );
    }

    #[test]
    fn a_phrase_that_is_too_long_is_cut_where_it_is_quietest() {
        let mut phrases = Phrases::new(PIECE as usize);
        let found: Vec<Phrase> = (0..2000)
            .filter_map(|at| phrases.take(0.9, if at == 700 || at == 200 { 0.1 } else { 1.0 }))
            .collect();
        assert_eq!(found[0], phrase(0..700, 0..700));
        assert!(found.len() == 2 && found[1].sound.start == 700 * PIECE, "{found:?}");
    }

    #[test]
    fn after_an_end_nothing_of_before_is_taken() {
        let mut phrases = Phrases::new(PIECE as usize);
        (0..10).for_each(|_| assert_eq!(phrases.take(0.9, 0.0), None));
        let end = 10 * PIECE + 100;
        assert_eq!(phrases.end(end, 50_000), Some(Phrase { sound: 0..end, speech: 0..end }));
        assert_eq!((phrases.open(), phrases.needed_from()), (None, 50_000));
        phrases.take(0.9, 0.0);
        assert_eq!(phrases.open(), Some((50_000, 50_000)));
    }

    fn any_sound() -> impl Strategy<Value = Vec<f32>> {
        let run = (0.0f32..1.0, 1usize..400);
        proptest::collection::vec(run, 1..40).prop_map(|parts| pieces(&parts))
    }

    proptest! {
        #[test]
        fn phrases_are_in_order_apart_bounded_and_cover_what_is_speech(probabilities in any_sound()) {
            let found = run(&probabilities);
            for phrase in &found {
                prop_assert!(phrase.sound.start <= phrase.speech.start && phrase.speech.end <= phrase.sound.end);
                prop_assert!(!phrase.speech.is_empty());
                prop_assert!(phrase.sound.end - phrase.sound.start <= PHRASE_MAX);
            }
            prop_assert!(found.windows(2).all(|pair| pair[0].sound.end <= pair[1].sound.start));
            // Each run of speech is in phrases, or is too short.
            let mut since = None;
            for (at, p) in probabilities.iter().chain([&0.0]).enumerate() {
                let at = at as u64 * PIECE;
                if *p >= ONSET {
                    since.get_or_insert(at);
                } else if let Some(start) = since.take() && at - start >= SPEECH_MIN {
                    for piece in (start..at).step_by(PIECE as usize) {
                        let covered = found.iter().any(|phrase| phrase.sound.contains(&piece));
                        prop_assert!(covered, "{piece} is in none of {:?}", found);
                    }
                }
            }
        }
    }
}
