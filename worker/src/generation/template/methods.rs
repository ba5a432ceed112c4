//! Python's methods of strings and dictionaries, as far as chat templates use them, and the engine's filters of the same
//! names where marks around contents would show.

use super::environment::Raised;
use super::marks::Marked;
use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State};
use std::ops::Range;

pub(super) fn add(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("trim", |state: &State, text: &Value, chars: Option<&str>| match text.as_str() {
        Some(text) => strip(state, text, chars, [true, true]),
        None => strip(state, &text.to_string(), chars, [true, true]),
    });
    environment.add_filter("replace", |state: &State, text: &str, from: &str, to: &str| {
        replace(state, text, from, to, None)
    });
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_test("startingwith", |text: &str, start: &str| starts(text, start));
    environment.add_test("endingwith", |text: &str, end: &str| ends(text, end));
}

/// Without marks, with marks.
fn marked(text: &str) -> Result<Marked, Error> {
    Marked::read(text).ok_or_else(|| Raised::Torn.into())
}

/// What is copied takes fuel: the engine counts results, not what they are made of.
fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(1 + bytes as u64 / 64)
}

fn length(value: &Value) -> Result<usize, Error> {
    match value.as_str() {
        Some(text) => Ok(marked(text)?.plain.chars().count()),
        None => value.len().ok_or_else(|| ErrorKind::InvalidOperation.into()),
    }
}

fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => of_string(state, value.as_str().unwrap_or_default(), name, args),
        ValueKind::Map => of_map(state, value, name, args),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn of_map(state: &mut State, map: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "items" => {
            let () = from_args(args)?;
            state.apply_filter("items", std::slice::from_ref(map))
        }
        "keys" => {
            let () = from_args(args)?;
            state.apply_filter("list", std::slice::from_ref(map))
        }
        "values" => {
            let () = from_args(args)?;
            pay(state, 64 * map.len().unwrap_or(0))?;
            map.try_iter()?.map(|key| map.get_item(&key)).collect::<Result<Vec<_>, _>>().map(Value::from)
        }
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            let found = map.get_item(key)?;
            Ok(if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found })
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn of_string(state: &mut State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    pay(state, text.len())?;
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            strip(state, text, chars, [name != "rstrip", name != "lstrip"])
        }
        "split" | "rsplit" => {
            let (separator, count): (Option<&str>, Option<i64>) = from_args(args)?;
            split(state, text, separator, count, name == "rsplit")
        }
        "splitlines" => {
            let () = from_args(args)?;
            let marked = marked(text)?;
            let lines = marked.plain.lines().map(|line| within(&marked.plain, line));
            slices(state, &marked, lines.collect())
        }
        "startswith" | "endswith" => {
            let (affix,): (&Value,) = from_args(args)?;
            let is = if name == "startswith" { starts } else { ends };
            any_affix(affix, |affix| is(text, affix))
        }
        "removeprefix" | "removesuffix" => {
            let (affix,): (&str,) = from_args(args)?;
            let marked = marked(text)?;
            let plain = marked.plain.as_str();
            let rest =
                if name == "removeprefix" { plain.strip_prefix(affix) } else { plain.strip_suffix(affix) };
            Ok(Value::from(marked.slice(within(plain, rest.unwrap_or(plain)))))
        }
        "replace" => {
            let (from, to, count): (&str, &str, Option<i64>) = from_args(args)?;
            replace(state, text, from, to, count)
        }
        "find" | "count" | "index" => {
            let (part,): (&str,) = from_args(args)?;
            find(text, part, name)
        }
        "upper" | "lower" | "title" | "capitalize" => {
            let () = from_args(args)?;
            state.apply_filter(name, &[Value::from(text)])
        }
        "isdigit" | "isspace" | "isalpha" | "isupper" | "islower" => {
            let () = from_args(args)?;
            is_of(&marked(text)?.plain, name)
        }
        "join" => {
            let (parts,): (&Value,) = from_args(args)?;
            state.apply_filter("join", &[parts.clone(), Value::from(text)])
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

/// Where a part of a text is in it.
fn within(whole: &str, part: &str) -> Range<usize> {
    let begin = part.as_ptr() as usize - whole.as_ptr() as usize;
    begin..begin + part.len()
}

fn strip(state: &State, text: &str, chars: Option<&str>, [front, back]: [bool; 2]) -> Result<Value, Error> {
    let chars: Option<Vec<char>> = chars.map(|chars| chars.chars().collect());
    pay(state, text.len())?;
    let goes = |character: char| match &chars {
        Some(chars) => chars.contains(&character),
        None => character.is_whitespace(),
    };
    let marked = marked(text)?;
    let mut rest = marked.plain.as_str();
    if front {
        rest = rest.trim_start_matches(goes);
    }
    if back {
        rest = rest.trim_end_matches(goes);
    }
    Ok(Value::from(marked.slice(within(&marked.plain, rest))))
}

fn slices(state: &State, marked: &Marked, ranges: Vec<Range<usize>>) -> Result<Value, Error> {
    pay(state, 64 * ranges.len())?;
    Ok(ranges.into_iter().map(|range| Value::from(marked.slice(range))).collect::<Vec<_>>().into())
}

fn split(
    state: &State,
    text: &str,
    separator: Option<&str>,
    count: Option<i64>,
    from_end: bool,
) -> Result<Value, Error> {
    let marked = marked(text)?;
    let plain = marked.plain.as_str();
    let parts_max = count.and_then(|count| usize::try_from(count).ok()).map_or(usize::MAX, |count| count + 1);
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(ErrorKind::InvalidOperation.into()),
        Some(separator) if from_end => plain.rsplitn(parts_max, separator).collect(),
        Some(separator) => plain.splitn(parts_max, separator).collect(),
        // Python counts here too, which no template does.
        None if count.is_some() => return Err(ErrorKind::InvalidOperation.into()),
        None => plain.split_whitespace().collect(),
    };
    if from_end && separator.is_some() {
        parts.reverse();
    }
    let ranges = parts.into_iter().map(|part| within(plain, part)).collect();
    slices(state, &marked, ranges)
}

fn starts(text: &str, start: &str) -> Result<bool, Error> {
    Ok(marked(text)?.plain.starts_with(marked(start)?.plain.as_str()))
}

fn ends(text: &str, end: &str) -> Result<bool, Error> {
    Ok(marked(text)?.plain.ends_with(marked(end)?.plain.as_str()))
}

/// One text, or any of several.
fn any_affix(affix: &Value, is: impl Fn(&str) -> Result<bool, Error>) -> Result<Value, Error> {
    let wrong = || Error::from(ErrorKind::InvalidOperation);
    if let Some(affix) = affix.as_str() {
        return is(affix).map(Value::from);
    }
    for affix in affix.try_iter()? {
        if is(affix.as_str().ok_or_else(wrong)?)? {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn replace(state: &State, text: &str, from: &str, to: &str, count: Option<i64>) -> Result<Value, Error> {
    let marked = marked(text)?;
    let most = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let from = self::marked(from)?.plain;
    let mut replaced = String::new();
    let mut at = 0;
    for (begin, found) in marked.plain.match_indices(&from).take(most) {
        pay(state, begin - at + to.len())?;
        replaced.push_str(&marked.slice(at..begin));
        replaced.push_str(to);
        at = begin + found.len();
    }
    replaced.push_str(&marked.slice(at..marked.plain.len()));
    Ok(Value::from(replaced))
}

/// Places are in characters, as Python's.
fn find(text: &str, part: &str, name: &str) -> Result<Value, Error> {
    let plain = marked(text)?.plain;
    let part = marked(part)?.plain;
    if name == "count" {
        return Ok(Value::from(plain.matches(&part).count()));
    }
    match plain.find(&part) {
        Some(place) => Ok(Value::from(plain[..place].chars().count())),
        None if name == "find" => Ok(Value::from(-1)),
        None => Err(ErrorKind::InvalidOperation.into()),
    }
}

fn is_of(plain: &str, name: &str) -> Result<Value, Error> {
    let all = |is: fn(char) -> bool| !plain.is_empty() && plain.chars().all(is);
    let cased =
        |is: fn(char) -> bool, is_not: fn(char) -> bool| plain.contains(is) && !plain.contains(is_not);
    let is = match name {
        "isdigit" => all(char::is_numeric),
        "isspace" => all(char::is_whitespace),
        "isalpha" => all(char::is_alphabetic),
        "isupper" => cased(char::is_uppercase, char::is_lowercase),
        _ => cased(char::is_lowercase, char::is_uppercase),
    };
    Ok(Value::from(is))
}
