//! What may be said next: openai/whisper's filters of the logits.

use super::vocabulary::Vocabulary;
use std::ops::Range;

/// Speech begins within the first second: at most this many timestamps after the first.
const INITIAL_TIMESTAMP_MAX: u32 = 50;

/// Sets the logits of what may not follow `said`, which is what was said in this window so far, to minus infinity.
pub(super) fn apply(logits: &mut [f32], said: &[u32], vocabulary: &Vocabulary, timestamps: bool) {
    if said.is_empty() {
        forbid(logits, vocabulary.blank());
    }
    forbid(logits, vocabulary.suppressed());
    if timestamps {
        apply_timestamps(logits, said, vocabulary);
    }
}

/// Timestamps come in pairs, one that ends a segment and one that begins the next, never go back, and stand at both ends.
fn apply_timestamps(logits: &mut [f32], said: &[u32], vocabulary: &Vocabulary) {
    let (first, end) = (vocabulary.timestamps(), vocabulary.end());
    let all = u32::try_from(logits.len()).expect("the configuration bounds it");
    forbid(logits, &[vocabulary.no_timestamps()]);
    let is_timestamp = |back: usize| said.iter().rev().nth(back).map(|id| vocabulary.is_timestamp(*id));
    let last = is_timestamp(0) == Some(true);
    let last_but_one = is_timestamp(1) != Some(false);
    if last {
        // After a pair comes text, after one alone its other half, or the end.
        forbid_range(logits, if last_but_one { first..all } else { 0..end });
    }
    if let Some(latest) = said.iter().rfind(|id| vocabulary.is_timestamp(**id)) {
        // A segment may begin where the former one ended, but not end where it began.
        forbid_range(logits, first..if last && !last_but_one { *latest } else { latest + 1 });
    }
    if said.is_empty() {
        forbid_range(logits, 0..first);
        forbid_range(logits, first + INITIAL_TIMESTAMP_MAX + 1..all);
    }
    // Where the timestamps together are more likely than any one text token, one of them is meant.
    let (text, times) = logits.split_at(first as usize);
    let most = largest(text);
    if log_sum(times) > f64::from(most) {
        forbid_range(logits, 0..first);
    }
}

fn forbid(logits: &mut [f32], ids: &[u32]) {
    ids.iter().for_each(|id| logits[*id as usize] = f32::NEG_INFINITY);
}

fn forbid_range(logits: &mut [f32], ids: Range<u32>) {
    let length = logits.len();
    let end = (ids.end as usize).min(length);
    logits[(ids.start as usize).min(end)..end].fill(f32::NEG_INFINITY);
}

/// The logarithm of the sum of e^x, which is minus infinity for nothing.
pub(super) fn log_sum(logits: &[f32]) -> f64 {
    /// What is so far below the largest adds nothing to the sum, not even together.
    const FAR: f32 = -30.0;
    let most = largest(logits);
    if logits.iter().any(|x| x.is_nan()) {
        return f64::NAN;
    }
    if most == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    let below = logits.iter().map(|x| x - most).filter(|below| *below > FAR);
    f64::from(most) + below.map(|below| f64::from(below.exp())).sum::<f64>().ln()
}

/// The largest of them; what is no number doesn't count. In lanes, so that it takes vector instructions.
pub(super) fn largest(logits: &[f32]) -> f32 {
    const LANES: usize = 16;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *logit);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

#[cfg(test)]
mod tests {
    use super::super::tiny;
    use super::super::vocabulary::tests::vocabulary;
    use super::*;

    const T: u32 = tiny::TIMESTAMPS;
    const A: u32 = b'a' as u32;
    const ALL: Range<u32> = T..tiny::VOCABULARY as u32;

    /// What may follow, where all tokens of text are likelier than any time.
    fn allowed(said: &[u32], timestamps: bool) -> Vec<u32> {
        let mut logits = vec![0.0; tiny::VOCABULARY];
        logits[T as usize..].fill(-20.0);
        apply(&mut logits, said, &vocabulary(false), timestamps);
        (0..).zip(logits).filter(|(_, logit)| *logit > f32::NEG_INFINITY).map(|(id, _)| id).collect()
    }

    fn text() -> Vec<u32> {
        (0..tiny::END).filter(|id| *id != 35).collect()
    }

    #[track_caller]
    fn check(said: &[u32], text_too: bool, end: bool, times: Range<u32>) {
        let mut expected = if text_too { text() } else { Vec::new() };
        expected.extend(end.then_some(tiny::END));
        // Languages are no text, and no text ends with one in practice; nobody forbids them.
        let languages = tiny::START + 1..tiny::TRANSLATE;
        let found: Vec<u32> = allowed(said, true).into_iter().filter(|id| !languages.contains(id)).collect();
        expected.extend(times);
        assert_eq!(found, expected, "after {said:?}");
    }

    #[test]
    fn a_text_begins_with_a_time_within_the_first_second() {
        check(&[], false, false, ALL);
    }

    #[test]
    fn times_come_in_pairs_and_never_go_back() {
        check(&[T], true, true, 0..0);
        check(&[T, A], true, true, T + 1..ALL.end);
        check(&[T, A, T + 5], false, true, T + 5..ALL.end);
        check(&[T, A, T + 5, T + 5], true, true, 0..0);
        check(&[T, A, T + 5, T + 6, A], true, true, T + 7..ALL.end);
        check(&[T, A, ALL.end - 1], false, true, ALL.end - 1..ALL.end);
    }

    #[test]
    fn times_that_are_likely_together_are_meant() {
        let mut logits = vec![0.0; tiny::VOCABULARY];
        apply(&mut logits, &[T, A], &vocabulary(false), true);
        assert!(logits[..T as usize].iter().all(|logit| *logit == f32::NEG_INFINITY));
    }

    #[test]
    fn a_text_without_times_begins_with_no_space_and_has_no_signs() {
        let first = allowed(&[], false);
        let space = u32::from(b' ');
        assert!(!first.contains(&space) && !first.contains(&tiny::END) && first.contains(&A));
        let later = allowed(&[A], false);
        assert!(later.contains(&space) && later.contains(&tiny::END));
        for never in [35, tiny::START, tiny::TRANSLATE, tiny::PREVIOUS, tiny::NO_SPEECH] {
            assert!(!first.contains(&never) && !later.contains(&never), "{never}");
        }
    }

    #[test]
    fn sums_of_exponentials_are_exact_far_from_zero() {
        for offset in [0.0, 1000.0, -1000.0] {
            let sum = log_sum(&[offset, offset, f32::NEG_INFINITY]);
            assert!((sum - f64::from(offset) - 2f64.ln()).abs() < 1e-9, "{sum}");
        }
        assert_eq!(log_sum(&[]), f64::NEG_INFINITY);
        assert_eq!(largest(&[1.0, f32::NAN, 3.0, 2.0]), 3.0);
        let many: Vec<f32> = (0..40).map(|i| (i * 7 % 40) as f32).collect();
        assert_eq!(largest(&many), 39.0);
        assert!(log_sum(&[f32::NAN, 1.0]).is_nan());
    }
}
