//! Stop strings: the text ends before the first one, and nothing is given that may be the beginning of one.

/// Stop strings, and the text that may be the beginning of one.
///
/// The first stop string is the one that is complete first: generation ends with it, so none that begins earlier and
/// would be complete later can come. Of two that are complete with the same character the longer one counts.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    stops: Vec<String>,
    held: String,
}

impl Stops {
    /// None at all are fine; how many and how long they may be is the protocol's matter.
    ///
    /// # Panics
    /// One is empty.
    pub fn new(stops: Vec<String>) -> Self {
        assert!(stops.iter().all(|stop| !stop.is_empty()), "a job is taken with legal options only");
        Self { stops, held: String::new() }
    }

    /// Adds to `text` what can't be of a stop string any more. True if one is complete: the text has ended before it, and
    /// what comes is dropped.
    pub fn push(&mut self, more: &str, text: &mut String) -> bool {
        self.held.push_str(more);
        if let Some(begin) = self.first() {
            text.push_str(&self.held[..begin]);
            self.held.clear();
            return true;
        }
        let free = self.held.len() - self.beginning();
        text.push_str(&self.held[..free]);
        self.held.drain(..free);
        false
    }

    /// Ends the text without a stop string: what was held back is given.
    pub fn finish(&mut self, text: &mut String) {
        text.push_str(&self.held);
        self.held.clear();
    }

    /// Where the stop string begins that is complete first.
    fn first(&self) -> Option<usize> {
        let found = self.stops.iter().filter_map(|stop| {
            let begin = self.held.find(stop.as_str())?;
            Some((begin + stop.len(), begin))
        });
        found.min().map(|(_, begin)| begin)
    }

    /// The length of the longest end of the text with which a stop string begins.
    fn beginning(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0).saturating_sub(1);
        let ends = (self.held.len().saturating_sub(longest)..self.held.len())
            .filter_map(|begin| self.held.get(begin..));
        let mut beginnings = ends.filter(|end| self.stops.iter().any(|stop| stop.starts_with(end)));
        beginnings.next().map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stops(stops: &[&str]) -> Stops {
        Stops::new(stops.iter().map(|stop| (*stop).to_owned()).collect())
    }

    #[test]
    fn text_is_held_back_while_it_may_be_the_beginning_of_a_stop_string() {
        let mut stops = stops(&["\n\nUser:"]);
        let mut push = |more: &str| {
            let mut text = String::new();
            let stopped = stops.push(more, &mut text);
            (text, stopped)
        };
        assert_eq!(push("Hi\n"), ("Hi".to_owned(), false));
        assert_eq!(push("\n"), (String::new(), false));
        assert_eq!(push("\nUs"), ("\n".to_owned(), false));
        assert_eq!(push("er: me"), (String::new(), true));
    }

    #[test]
    fn without_a_stop_string_everything_is_given_at_the_end() {
        let mut stops = stops(&["END"]);
        let mut text = String::new();
        assert!(!stops.push("the EN", &mut text));
        assert_eq!(text, "the ");
        stops.finish(&mut text);
        assert_eq!(text, "the EN");
    }

    #[test]
    fn of_two_stop_strings_the_one_that_is_complete_first_counts() {
        let mut text = String::new();
        assert!(stops(&["abcd", "bc"]).push("xabcd", &mut text));
        assert_eq!(text, "xa");
        let mut text = String::new();
        assert!(stops(&["bc", "abc"]).push("xabcd", &mut text));
        assert_eq!(text, "x");
    }

    /// The text before the stop string that is complete first, by trying every end.
    fn cut(text: &str, stops: &[String]) -> Option<String> {
        let ends = (0..=text.len()).filter_map(|end| text.get(..end));
        let mut cuts = ends.filter_map(|seen| {
            let longest = stops.iter().filter(|stop| seen.ends_with(stop.as_str())).map(String::len).max()?;
            Some(seen[..seen.len() - longest].to_owned())
        });
        cuts.next()
    }

    proptest! {
        #[test]
        fn whatever_the_pieces_the_text_is_cut_at_the_first_stop_string_and_nothing_is_given_twice_or_taken_back(
            pieces in prop::collection::vec("[abé]{0,5}", 0..12), list in prop::collection::vec("[abé]{1,4}", 0..4),
        ) {
            let whole = pieces.concat();
            let expected = cut(&whole, &list);
            let mut stops = Stops::new(list);
            let mut text = String::new();
            let mut stopped = false;
            for piece in &pieces {
                stopped = stops.push(piece, &mut text);
                let certain = expected.as_deref().unwrap_or(&whole);
                prop_assert!(certain.starts_with(&text), "{text:?} was given, {certain:?} is the text");
                if stopped {
                    break;
                }
            }
            prop_assert_eq!(stopped, expected.is_some());
            if !stopped {
                stops.finish(&mut text);
            }
            prop_assert_eq!(text, expected.unwrap_or(whole));
        }
    }
}
