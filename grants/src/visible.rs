//! Texts of strangers as they are shown, so that none can pass for part of the question.

/// The text with everything that would not be seen as it is written as an escape: control characters, characters that
/// change the direction of writing, invisible ones and line separators.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hides(c) {
            shown.extend(c.escape_unicode());
        } else if c == '\\' {
            shown.push_str("\\\\");
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Whether a character changes what is seen around it, or is not seen.
pub(crate) fn hides(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_hide_is_written_out_and_the_rest_stays() {
        assert_eq!(visible("Grüße, 世界 a/b.txt"), "Grüße, 世界 a/b.txt");
        assert_eq!(visible("a\u{202e}gpj.exe\n\u{1b}[2Kb\\"), "a\\u{202e}gpj.exe\\u{a}\\u{1b}[2Kb\\\\");
        assert_eq!(visible("\u{200b}\u{e0041}"), "\\u{200b}\\u{e0041}");
    }
}
