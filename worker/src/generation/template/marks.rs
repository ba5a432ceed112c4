//! Marks around contents: noncharacters, which no text for interchange has (Unicode 23.7).

use std::ops::Range;

const BEGIN: char = '\u{fdd0}';
const END: char = '\u{fdd1}';

pub(super) fn has_marks(text: &str) -> bool {
    text.contains([BEGIN, END])
}

/// A content between marks, white space around it outside of them; an empty one has none.
pub(super) fn mark(content: &str) -> String {
    let core = content.trim();
    if core.is_empty() {
        return content.to_owned();
    }
    let before = content.len() - content.trim_start().len();
    let after = &content[before + core.len()..];
    let mut marked = String::with_capacity(content.len() + BEGIN.len_utf8() + END.len_utf8());
    marked.extend([&content[..before], BEGIN.encode_utf8(&mut [0; 4]), core]);
    marked.push(END);
    marked.push_str(after);
    marked
}

/// A text with and without its marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marked {
    /// Without them.
    pub(super) plain: String,
    /// Where contents are in the plain text: not empty, ascending, apart.
    contents: Vec<Range<usize>>,
}

impl Marked {
    /// `None` if its marks are not pairs.
    pub(super) fn read(text: &str) -> Option<Self> {
        let mut marked = Self { plain: String::with_capacity(text.len()), contents: Vec::new() };
        let mut begin = None;
        for piece in text.split_inclusive([BEGIN, END]) {
            let (text, end) = match piece.strip_suffix(BEGIN) {
                Some(text) => (text, Some(BEGIN)),
                None => piece.strip_suffix(END).map_or((piece, None), |text| (text, Some(END))),
            };
            marked.plain.push_str(text);
            begin = match (begin, end) {
                (None, Some(BEGIN)) => Some(marked.plain.len()),
                (Some(begin), Some(END)) => {
                    marked.add(begin..marked.plain.len());
                    None
                }
                (None, None) => None,
                (Some(_), _) | (None, Some(_)) => return None,
            };
        }
        begin.is_none().then_some(marked)
    }

    fn add(&mut self, content: Range<usize>) {
        match self.contents.last_mut() {
            _ if content.is_empty() => {}
            Some(last) if last.end == content.start => last.end = content.end,
            Some(_) | None => self.contents.push(content),
        }
    }

    /// Stretches of the plain text, and whether each is of contents.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&str, bool)> {
        self.parts_of(0..self.plain.len())
    }

    fn parts_of(&self, range: Range<usize>) -> impl Iterator<Item = (&str, bool)> {
        let first = self.contents.partition_point(|content| content.end <= range.start);
        let within = self.contents[first..].iter().take_while(move |content| content.start < range.end);
        let mut at = range.start;
        let end = range.end;
        let mut parts = Vec::new();
        for content in within {
            let (start, stop) = (content.start.max(at), content.end.min(end));
            parts.extend([(&self.plain[at..start], false), (&self.plain[start..stop], true)]);
            at = stop;
        }
        parts.push((&self.plain[at..end], false));
        parts.into_iter().filter(|(text, _)| !text.is_empty())
    }

    /// A stretch of the plain text, with marks.
    pub(super) fn slice(&self, range: Range<usize>) -> String {
        let mut text = String::with_capacity(range.len());
        for (part, is_content) in self.parts_of(range) {
            if is_content {
                text.push(BEGIN);
                text.push_str(part);
                text.push(END);
            } else {
                text.push_str(part);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn marks_are_inside_of_white_space_and_around_nothing_there_are_none() {
        assert_eq!(mark(" a b\n"), " \u{fdd0}a b\u{fdd1}\n");
        assert_eq!(mark(" \n"), " \n");
        assert_eq!(mark(""), "");
    }

    #[test]
    fn marks_that_are_no_pairs_are_found() {
        for text in ["\u{fdd0}a", "a\u{fdd1}", "\u{fdd1}\u{fdd0}", "\u{fdd0}\u{fdd0}a\u{fdd1}\u{fdd1}"] {
            assert_eq!(Marked::read(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn slices_of_a_marked_text_are_its_stretches(texts in prop::collection::vec(("[a-c é]{0,4}", "[a-c é]{0,4}"), 0..5), from in 0usize..40, to in 0usize..40) {
            let text: String = texts.iter().map(|(own, content)| own.clone() + &mark(content)).collect();
            let marked = Marked::read(&text).unwrap();
            let plain: String = texts.iter().map(|(own, content)| own.clone() + content).collect();
            prop_assert_eq!(&marked.plain, &plain);
            prop_assert_eq!(marked.parts().map(|(text, _)| text).collect::<String>(), plain.clone());
            let whole = marked.slice(0..plain.len());
            prop_assert_eq!(Marked::read(&whole).unwrap(), marked.clone());
            let places: Vec<usize> = (0..=plain.len()).filter(|place| plain.is_char_boundary(*place)).collect();
            let (a, b) = (places[from % places.len()], places[to % places.len()]);
            let range = a.min(b)..a.max(b);
            let slice = Marked::read(&marked.slice(range.clone())).unwrap();
            prop_assert_eq!(&slice.plain, &plain[range.clone()]);
            let of_slice: Vec<bool> = slice.parts().flat_map(|(text, is_content)| text.chars().map(move |_| is_content)).collect();
            let all = marked.parts().flat_map(|(text, is_content)| text.chars().map(move |_| is_content));
            let before = plain[..range.start].chars().count();
            prop_assert_eq!(of_slice.clone(), all.skip(before).take(of_slice.len()).collect::<Vec<bool>>());
        }
    }
}
