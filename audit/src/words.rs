//! Entries in plain words, for people.

use crate::entry::{Access, Change, Clock, Decider, Decision, Entry, Event};
use crate::mask::Masked;
use crate::names::NameMap;

/// Letters of a mask that are shown where its name is not known.
const MASK_SHOWN: usize = 17;

/// One entry on one line: when, its index, who, what, and the numbers that tie it to others.
pub fn line(index: u64, entry: &Entry, names: &NameMap) -> String {
    let [when, index, who, what] = cells(index, entry, names);
    format!("{when}  #{index}  {who}  {what}")
}

/// The same in parts.
pub(crate) fn cells(index: u64, entry: &Entry, names: &NameMap) -> [String; 4] {
    let back = if entry.clock == Some(Clock::Back) { " (the clock went back)" } else { "" };
    let when = utc(entry.time_ms) + back;
    let what = format!("{} [{}]", what(&entry.event, names), ties(entry));
    [when, index.to_string(), who(entry, names), what]
}

fn who(entry: &Entry, names: &NameMap) -> String {
    match (entry.client, entry.uid) {
        (Some(client), Some(uid)) => format!("{} (uid {uid})", plain(&client, names)),
        (Some(client), None) => plain(&client, names),
        (None, Some(uid)) => format!("uid {uid}"),
        (None, None) => "server".to_owned(),
    }
}

fn ties(entry: &Entry) -> String {
    let grant = entry.event.grant().map(|grant| format!("grant {grant}"));
    let request = entry.request.as_ref().map(|request| format!("request {request}"));
    let session = entry.session.as_ref().map(|session| format!("session {session}"));
    let run = Some(format!("run {}", entry.run));
    [grant, request, session, run].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn what(event: &Event, names: &NameMap) -> String {
    let name = |masked: &Masked| plain(masked, names);
    match event {
        Event::ServerStarted { version, dropped_bytes: 0 } => format!("started, version {version}"),
        Event::ServerStarted { version, dropped_bytes } => {
            format!("started, version {version}; {dropped_bytes} bytes of an unfinished write were dropped")
        }
        Event::ServerStopped => "stopped".to_owned(),
        Event::GrantRequested {
            access, path, audience, reason, lifetime_ms, bytes_max, snapshot, ..
        } => {
            let copies = if *snapshot { ", copies included" } else { "" };
            format!(
                "asked to {} {} for {audience}, {} s, at most {bytes_max} bytes{copies}, because: {}",
                access_words(*access),
                name(path),
                lifetime_ms / 1_000,
                name(reason),
            )
        }
        Event::GrantDecided { decision, by, until_ms, .. } => decided(*decision, *by, *until_ms),
        Event::GrantNarrowed { from, path, .. } => format!("made of grant {from} one for {}", name(path)),
        Event::GrantUsed { path, .. } => format!("first used it: {}", name(path)),
        Event::GrantUseEnded { path, bytes, digest, result, .. } => {
            let digest = digest.as_ref().map_or(String::new(), |digest| format!(", {digest}"));
            format!("had {bytes} bytes of {}: {result}{digest}", name(path))
        }
        Event::GrantClosed { result, uses, bytes, .. } => {
            format!("the grant ended ({result}) after {uses} uses and {bytes} bytes")
        }
        Event::JobEnded { job, model, digest, result, device_ms, tokens, .. } => {
            let digest = digest.as_ref().map_or(String::new(), |digest| format!(" ({digest})"));
            let tokens = tokens.map_or(String::new(), |tokens| format!(", {tokens} tokens"));
            format!("job {job} on {model}{digest}: {result}{tokens}, {device_ms} ms of device time")
        }
        Event::ModelLoaded { model, digest, signer } => {
            format!("loaded {model}, digest {digest}, signed by {signer}")
        }
        Event::ModelRefused { model, result } => format!("refused the model {model}: {result}"),
        Event::Refused { code, count } => format!("was refused {count} times: {code}"),
        Event::OutOfMemory { rung, model, device, job } => {
            format!("not enough memory for {model} on {device}: {rung}{}", for_job(*job))
        }
        Event::WorkerKilled { worker, model, reason } => {
            format!("killed worker {worker} of {model}: {reason}")
        }
        Event::WorkerDied { worker, model, reason } => {
            format!("worker {worker} of {model} died: {reason}")
        }
        Event::QuotasChanged { digest } => format!("quotas changed, now {digest}"),
        Event::TrustChanged { version, digest } => format!("trust changed, version {version}, {digest}"),
        Event::ClientChanged { name: client, change } => {
            format!("client {} {}", name(client), changed(*change))
        }
        Event::KeyChanged { key, change } => format!("key {key} {}", changed(*change)),
        Event::AudioStarted { source, .. } => format!("began to capture audio from {}", name(source)),
        Event::AudioStopped { captured_ms, result, .. } => {
            format!("captured audio no more ({result}) after {captured_ms} ms")
        }
        Event::Pruned { before } => format!("entries before #{before} were removed; their hashes stay"),
    }
}

fn access_words(access: Access) -> &'static str {
    match access {
        Access::FileRead => "read",
        Access::FileWrite => "write",
        Access::AudioCapture => "capture audio from",
        Access::Infer => "run",
    }
}

fn decided(decision: Decision, by: Decider, until_ms: Option<u64>) -> String {
    let by = match by {
        Decider::Operator => "the operator",
        Decider::OperatorKey => "the operator, signed by his key",
        Decider::Rule => "a rule",
        Decider::Nobody => "nobody answering in time",
    };
    let until = until_ms.map_or(String::new(), |until| format!(", until {}", utc(until)));
    match decision {
        Decision::Approved => format!("approved by {by}{until}"),
        Decision::Denied => format!("denied by {by}"),
    }
}

fn changed(change: Change) -> &'static str {
    match change {
        Change::Added => "added",
        Change::Changed => "changed",
        Change::Removed => "removed",
    }
}

fn for_job(job: Option<u64>) -> String {
    job.map_or(String::new(), |job| format!(", for job {job}"))
}

/// The name behind a mask, so that nothing in it hides; else the beginning of the mask.
fn plain(masked: &Masked, names: &NameMap) -> String {
    match names.name(masked) {
        Some(name) => visible(name),
        None => masked.to_string()[..MASK_SHOWN].to_owned(),
    }
}

/// A stranger's text on one line: control characters and those that turn or hide letters are escaped.
fn visible(text: &str) -> String {
    let hides = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
    };
    let shown = |c: char| if hides(c) { c.escape_unicode().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// Unix milliseconds as a date and time in UTC. The calendar is Howard Hinnant's `civil_from_days`.
pub fn utc(time_ms: u64) -> String {
    let seconds = time_ms / 1_000;
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", rest / 3_600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::Word;

    #[test]
    fn an_entry_is_one_line_without_tricks() {
        let word = |text| Word::new(text).unwrap();
        let event = Event::GrantDecided {
            grant: 7,
            decision: Decision::Approved,
            by: Decider::OperatorKey,
            until_ms: Some(1_709_251_200_000),
        };
        let mut entry = Entry::of_server(951_782_399_999, word("r1"), event);
        entry.clock = Some(Clock::Back);
        entry.client = Some(Masked([0xab; 32]));
        entry.request = Some(word("q9"));
        let expected = "2000-02-28 23:59:59Z (the clock went back)  #3  hmac:abababababab  \
                        approved by the operator, signed by his key, until 2024-03-01 00:00:00Z [grant 7, request q9, run r1]";
        assert_eq!(line(3, &entry, &NameMap::default()), expected);
        assert_eq!(visible("a\nb\u{202e}c"), "a\\u{a}b\\u{202e}c");
    }
}
