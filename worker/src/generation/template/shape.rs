//! How deep a template's expressions may be: the engine reads and compiles some of them by a call for each level, without
//! a bound of its own.

/// The longest tag in bytes, texts in quotes aside. Each operator and each access is a level.
const TAG_BYTES_MAX: usize = 1024;
/// The most signs and `not`s in a row.
const SIGNS_MAX: usize = 64;
/// The most branches of all `if`s together that begin with `elif`.
const ELIFS_MAX: usize = 256;

/// Whether all tags are short enough for the stack.
pub(super) fn is_shallow(template: &str) -> bool {
    if template.matches("elif").count() > ELIFS_MAX {
        return false;
    }
    let mut rest = template;
    while let Some(begin) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        match tag(&rest[begin + 2..]) {
            Some(length) => rest = &rest[begin + 2 + length..],
            None => return false,
        }
    }
    true
}

/// The bytes of a tag up to its end, or to that of the template; `None` if it is too deep.
fn tag(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut quote = None;
    let (mut at, mut outside, mut signs) = (0, 0, 0);
    while at < bytes.len() {
        let byte = bytes[at];
        match quote {
            Some(_) if byte == b'\\' => at += 1,
            Some(end) if byte == end => quote = None,
            Some(_) => {}
            None if bytes[at..].starts_with(b"}}") || bytes[at..].starts_with(b"%}") => {
                return Some(at);
            }
            None => {
                outside += 1;
                match byte {
                    b'\'' | b'"' => quote = Some(byte),
                    b'-' | b'+' => signs += 1,
                    b'n' if bytes[at..].starts_with(b"not") => {
                        signs += 1;
                        at += 2;
                    }
                    _ if byte.is_ascii_whitespace() => {}
                    _ => signs = 0,
                }
            }
        }
        if outside > TAG_BYTES_MAX || signs > SIGNS_MAX {
            return None;
        }
        at += 1;
    }
    Some(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_a_length_and_signs_in_a_row_a_number() {
        let check = |template: String, expected| assert_eq!(is_shallow(&template), expected, "{template}");
        check(format!("{}{{{{ 1{} }}}}", "-".repeat(9000), "+1".repeat(400)), true);
        check(format!("{{{{ 1{} }}}}", "+1".repeat(600)), false);
        check(format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(256)), true);
        check(format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(257)), false);
        check(format!("{{% set a = {}1 %}}", "-".repeat(60)), true);
        check(format!("{{% set a = {}1 %}}", "- ".repeat(65)), false);
        check(format!("{{% set a = {}1 %}}", "not ".repeat(65)), false);
        check(format!("{{{{ '{}' }}}}", "-}}'a'\\\\".replace('\'', "\\'").repeat(900)), true);
        check(format!("{{{{ 1{} }}}}", "+'}}'+\"\\\"%}\"".repeat(300)), false);
        check(format!("{{{{ 'é' {} }}}} {{{{ {} }}}}", "a ".repeat(500), "é ".repeat(200)), true);
    }
}
