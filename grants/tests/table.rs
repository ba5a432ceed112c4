//! The table of grants: who is asked, who may answer, what a string opens and for how long.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use proptest::prelude::*;
use ringfence_grants::{
    ANSWER_WAIT_MS, AUDIO_LIFETIME_MS_MAX, Approver, Ask, AskRefusal, Audience, AudioCapture, DecideRefusal,
    Decision, ENDED_MAX, Grant, GrantId, Grants, Kind, Moment, NarrowRefusal, Narrower, Presented,
    QUESTION_EVERY_MS, QUESTIONS_BURST, Refusal, RelativePath, Rules, Shown, ShownKind, Source, State,
    Transform, visible,
};

const START: Moment = Moment { boot_ms: 5_000_000, wall_ms: 1_790_000_000_000 };
const MINUTE: u64 = 60_000;
const OTHER: Approver = Approver { uid: Some(0), operator: false };

fn ask() -> Ask {
    Ask {
        client: "notes".to_owned(),
        uid: Some(1000),
        kind: Kind::FileRead,
        path: "/home/anna/notes".to_owned(),
        audience: Audience::Model("minilm".to_owned()),
        reason: "to find passages".to_owned(),
        results: "an index on this machine".to_owned(),
        lifetime_ms: 10 * MINUTE,
        uses_max: None,
        bytes_max: 1_000,
        snapshot: false,
    }
}

fn shown(kind: ShownKind) -> Shown {
    Shown { kind, device: 1, inode: 2, owner: 1000, size: 3, modified_ms: 4 }
}

fn secret(number: u64) -> [u8; 32] {
    let mut secret = [7; 32];
    secret[..8].copy_from_slice(&number.to_le_bytes());
    secret
}

/// A live grant of a folder, and its string.
fn live(grants: &mut Grants, ask: Ask) -> (GrantId, String) {
    let id = grants.ask(START, ask.clone(), &Rules::default()).unwrap();
    grants.shown(START, id, shown(ShownKind::Folder), &Rules::default()).unwrap();
    grants.decide(START, id, Decision::Approve { lifetime_ms: None }, OTHER).unwrap();
    (id, grants.claim(id, &ask.client, &secret(id.0)).unwrap().reveal().to_owned())
}

fn minilm() -> Audience {
    Audience::Model("minilm".to_owned())
}

fn read_at(grants: &mut Grants, now: Moment, string: &str, path: &str) -> Result<u64, Refusal> {
    let by = Presented { string, client: "notes", audience: &minilm() };
    grants.read(now, by, path, 100).map(|read| {
        let most = read.bytes_max();
        grants.spent(read, 1);
        most
    })
}

#[test]
fn a_string_opens_what_was_granted_and_nothing_else() {
    let mut grants = Grants::new([1; 6]);
    let (_, string) = live(&mut grants, ask());
    assert_eq!(read_at(&mut grants, START, &string, "a/b.md"), Ok(100));
    let by = Presented { string: &string, client: "notes", audience: &minilm() };
    assert_eq!(grants.write(START, by, "a", 1).unwrap_err(), Refusal::OutOfScope);
    for path in ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a\0b", &"x".repeat(5_000)] {
        assert_eq!(
            read_at(&mut grants, START, &string, path).unwrap_err().code(),
            "grant_path_refused",
            "{path:?}"
        );
    }
}

#[test]
fn each_wrong_string_is_refused_with_its_own_code() {
    let mut grants = Grants::new([1; 6]);
    let (id, string) = live(&mut grants, ask());
    let code = |grants: &mut Grants, now, by: Presented<'_>| grants.read(now, by, "", 1).unwrap_err().code();
    let minilm = minilm();
    let right = Presented { string: &string, client: "notes", audience: &minilm };

    let mut forged = string.clone().into_bytes();
    let last = forged.len() - 5;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    assert_eq!(code(&mut grants, START, Presented { string: &forged, ..right }), "capability_unknown");
    for text in ["", "rfg_", "x", &string[..string.len() - 1], &format!("{string}A")] {
        assert_eq!(
            code(&mut grants, START, Presented { string: text, ..right }),
            "capability_malformed",
            "{text}"
        );
    }
    assert_eq!(code(&mut grants, START, Presented { client: "mail", ..right }), "capability_wrong_holder");
    let other = Audience::Model("other".to_owned());
    assert_eq!(
        code(&mut grants, START, Presented { audience: &other, ..right }),
        "capability_wrong_audience"
    );
    assert_eq!(
        code(&mut grants, START, Presented { audience: &Audience::Client, ..right }),
        "capability_wrong_audience"
    );
    let mut restarted = Grants::new([2; 6]);
    assert_eq!(code(&mut restarted, START, right), "capability_of_another_run");
    let back = Moment { boot_ms: START.boot_ms + 1, wall_ms: START.wall_ms - 5_000 };
    assert_eq!(code(&mut grants, back, right), "clock_turned_back");
    assert_eq!(code(&mut grants, START.after(10 * MINUTE), right), "grant_expired");
    // Nobody has looked at the table meanwhile: the use itself decides. Then somebody has.
    grants.tick(START.after(10 * MINUTE));
    assert_eq!(code(&mut grants, START, right), "grant_expired", "what has ended stays ended");
    assert_eq!(grants.grant(id).unwrap().state, State::Expired);

    let (id, string) = live(&mut grants, Ask { uses_max: Some(2), ..ask() });
    for used in 0..2 {
        assert!(read_at(&mut grants, START, &string, "").is_ok(), "{used}");
    }
    assert_eq!(read_at(&mut grants, START, &string, "").unwrap_err().code(), "grant_used_up");
    grants.revoke(id);
    assert_eq!(read_at(&mut grants, START, &string, "").unwrap_err().code(), "grant_revoked");
}

#[test]
fn a_clock_that_is_turned_back_extends_nothing() {
    let mut grants = Grants::new([1; 6]);
    let (_, string) = live(&mut grants, ask());
    let end = START.boot_ms + 10 * MINUTE;
    let turned = Moment { boot_ms: end, wall_ms: START.wall_ms };
    assert_eq!(read_at(&mut grants, turned, &string, "").unwrap_err(), Refusal::Expired);
    let set_forward = Moment { boot_ms: START.boot_ms, wall_ms: START.wall_ms + 10 * MINUTE };
    assert_eq!(read_at(&mut grants, set_forward, &string, "").unwrap_err(), Refusal::Expired);
}

#[test]
fn a_string_is_given_once_and_to_its_holder() {
    let mut grants = Grants::new([1; 6]);
    let id = grants.ask(START, ask(), &Rules::default()).unwrap();
    assert!(grants.claim(id, "notes", &secret(1)).is_none(), "pending");
    grants.shown(START, id, shown(ShownKind::File), &Rules::default()).unwrap();
    grants.decide(START, id, Decision::Approve { lifetime_ms: None }, OTHER).unwrap();
    assert!(grants.claim(id, "mail", &secret(1)).is_none());
    let string = grants.claim(id, "notes", &secret(1)).unwrap();
    assert!(!format!("{string:?}").contains(&string.reveal()[8..]));
    assert!(grants.claim(id, "notes", &secret(2)).is_none());
    // The root is a file: it is all there is.
    let string = string.reveal().to_owned();
    assert_eq!(read_at(&mut grants, START, &string, ""), Ok(100));
    assert_eq!(read_at(&mut grants, START, &string, "x").unwrap_err(), Refusal::OutOfScope);
}

#[test]
fn nobody_answers_himself_and_nothing_is_approved_unseen() {
    let mut grants = Grants::new([1; 6]);
    let id = grants.ask(START, ask(), &Rules::default()).unwrap();
    let yes = Decision::Approve { lifetime_ms: None };
    assert_eq!(grants.decide(START, id, yes, OTHER).unwrap_err(), DecideRefusal::NotShown);
    grants.shown(START, id, shown(ShownKind::Folder), &Rules::default()).unwrap();
    assert!(grants.shown(START, id, shown(ShownKind::File), &Rules::default()).is_err(), "it is shown once");
    for uid in [Some(1000), None] {
        let own = Approver { uid, operator: false };
        assert_eq!(grants.decide(START, id, yes, own).unwrap_err(), DecideRefusal::SelfApproval);
    }
    for lifetime in [0, 10 * MINUTE + 1] {
        let more = Decision::Approve { lifetime_ms: Some(lifetime) };
        assert_eq!(grants.decide(START, id, more, OTHER).unwrap_err(), DecideRefusal::Lifetime);
    }
    let own = Approver { uid: Some(1000), operator: true };
    let less = Decision::Approve { lifetime_ms: Some(MINUTE) };
    let until = grants.decide(START, id, less, own).unwrap().until;
    assert_eq!(until, Some(START.after(MINUTE)));
    assert_eq!(grants.decide(START, id, yes, OTHER).unwrap_err(), DecideRefusal::NotPending);
    assert_eq!(grants.decide(START, GrantId(99), yes, OTHER).unwrap_err(), DecideRefusal::Unknown);

    let over_tcp = grants.ask(START, Ask { uid: None, ..ask() }, &Rules::default()).unwrap();
    grants.shown(START, over_tcp, shown(ShownKind::Folder), &Rules::default()).unwrap();
    assert_eq!(grants.decide(START, over_tcp, yes, OTHER).unwrap_err(), DecideRefusal::SelfApproval);
    assert_eq!(grants.decide(START, over_tcp, Decision::Deny, own).unwrap().state, State::Denied);
}

#[test]
fn silence_is_no_and_time_ends_what_lives() {
    let mut grants = Grants::new([1; 6]);
    let (living, _) = live(&mut grants, ask());
    let asked = grants.ask(START, ask(), &Rules::default()).unwrap();
    assert_eq!(grants.next_boot_ms(), Some(START.boot_ms + ANSWER_WAIT_MS));
    assert_eq!(grants.tick(START.after(ANSWER_WAIT_MS - 1)), []);
    let changes = grants.tick(START.after(ANSWER_WAIT_MS));
    assert_eq!(
        changes.iter().map(|change| (change.grant, change.state)).collect::<Vec<_>>(),
        [(asked, State::Denied)]
    );
    assert_eq!(grants.next_boot_ms(), Some(START.boot_ms + 10 * MINUTE));
    assert_eq!(grants.tick(START.after(10 * MINUTE))[0].grant, living);
    assert_eq!((grants.open(), grants.next_boot_ms()), (0, None));
}

#[test]
fn questions_come_at_a_bounded_rate_and_few_wait() {
    let mut grants = Grants::new([1; 6]);
    for _ in 0..4 {
        grants.ask(START, ask(), &Rules::default()).unwrap();
    }
    assert!(matches!(grants.ask(START, ask(), &Rules::default()), Err(AskRefusal::TooManyPending(4))));
    assert!(grants.ask(START, Ask { client: "mail".to_owned(), ..ask() }, &Rules::default()).is_ok());
    let mut now = START;
    let mut put = 4;
    let refusal = loop {
        grants.all().map(|grant| grant.id).collect::<Vec<_>>().into_iter().for_each(|id| {
            grants.revoke(id);
        });
        match grants.ask(now, ask(), &Rules::default()) {
            Ok(_) => put += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!((put, refusal), (QUESTIONS_BURST, AskRefusal::TooOften { retry_ms: QUESTION_EVERY_MS }));
    now = now.after(QUESTION_EVERY_MS);
    assert!(grants.ask(now, ask(), &Rules::default()).is_ok());
}

#[test]
fn texts_that_could_pass_for_the_question_are_refused() {
    let mut grants = Grants::new([1; 6]);
    for text in ["", " ", "a\nApproved: yes", "a\u{202e}b", "\u{1b}[1A", "\u{200b}", &"x".repeat(301)] {
        for ask in [Ask { reason: text.to_owned(), ..ask() }, Ask { results: text.to_owned(), ..ask() }] {
            assert!(
                matches!(grants.ask(START, ask, &Rules::default()), Err(AskRefusal::Text(_))),
                "{text:?}"
            );
        }
    }
    for path in ["", "notes", "/", "/a/", "/a/../b", "//a", "/a/./b", "/a\0"] {
        let asked = grants.ask(START, Ask { path: path.to_owned(), ..ask() }, &Rules::default());
        assert!(matches!(asked, Err(AskRefusal::Path(_) | AskRefusal::WholeDisk)), "{path:?}");
    }
    // A name may hold anything; it is shown with what would hide written out.
    let path = "/home/anna/a\u{202e}b\n";
    assert!(grants.ask(START, Ask { path: path.to_owned(), ..ask() }, &Rules::default()).is_ok());
    assert_eq!(visible(path), "/home/anna/a\\u{202e}b\\u{a}");
}

#[test]
fn what_is_revoked_takes_what_was_narrowed_from_it_along() {
    let mut grants = Grants::new([1; 6]);
    let (parent, string) = live(&mut grants, ask());
    let by = Presented { string: &string, client: "notes", audience: &minilm() };
    let path = RelativePath::new("a").unwrap();
    let child =
        grants.narrow(START, by, &Narrower { path, bytes_max: Some(10), ..Narrower::default() }).unwrap();
    let narrowed = grants.claim(child, "notes", &secret(100)).unwrap().reveal().to_owned();
    assert_eq!(read_at(&mut grants, START, &narrowed, "b"), Ok(10));
    assert_eq!(grants.grant(parent).unwrap().bytes, 1, "what it uses counts for the other");
    let by = Presented { string: &narrowed, client: "notes", audience: &minilm() };
    let read = grants.read(START, by, "b", 1).unwrap();
    assert_eq!((read.grant(), read.root(), read.path().as_str()), (child, parent, "a/b"));
    grants.spent(read, 0);
    let ended = grants.revoke(parent);
    assert_eq!(ended.iter().map(|change| change.grant).collect::<Vec<_>>(), [parent, child]);
    assert_eq!(read_at(&mut grants, START, &narrowed, "b").unwrap_err(), Refusal::Revoked);
}

#[test]
fn rules_answer_before_anybody_is_asked() {
    let rules = Rules::parse(
        r#"
        [[rule]]
        client = "notes"
        kind = "file_read"
        decision = "deny"
        below = "/home/anna/notes/private"

        [[rule]]
        client = "notes"
        kind = "file_read"
        decision = "allow"
        below = "/home/anna/notes"
        model = "minilm"
        until = 2027-01-31
        "#,
    )
    .unwrap();
    let mut grants = Grants::new([1; 6]);
    let mut state = |path: &str, change: fn(&mut Ask), now| {
        let mut ask = Ask { path: path.to_owned(), ..ask() };
        change(&mut ask);
        let id = grants.ask(now, ask, &rules).ok()?;
        let state = grants.shown(now, id, shown(ShownKind::Folder), &rules).unwrap();
        grants.revoke(id);
        Some(state)
    };
    assert_eq!(state("/home/anna/notes", |_| {}, START), Some(State::Live));
    assert_eq!(state("/home/anna/notes/a", |_| {}, START), Some(State::Live));
    assert_eq!(state("/home/anna/notes/private/a", |_| {}, START), None);
    assert_eq!(state("/home/anna/notesx", |_| {}, START), Some(State::Pending));
    assert_eq!(state("/home/anna/notes", |ask| ask.kind = Kind::FileWrite, START), Some(State::Pending));
    assert_eq!(state("/home/anna/notes", |ask| ask.audience = Audience::Client, START), Some(State::Pending));
    let later = Moment { wall_ms: 1_801_440_000_000, ..START };
    assert_eq!(state("/home/anna/notes", |_| {}, later), Some(State::Pending));
    for text in [
        "[[rule]]\nclient = \"*\"\nkind = \"file_read\"\ndecision = \"allow\"\nbelow = \"/a\"",
        "[[rule]]\nclient = \"*\"\nkind = \"file_read\"\ndecision = \"allow\"\nuntil = 2027-01-31",
        "[[rule]]\nclient = \"*\"\nkind = \"file_read\"\ndecision = \"deny\"\nbelow = \"a\"",
        "[[rule]]\nclient = \"*\"\nkind = \"file_read\"\ndecision = \"deny\"\nuntil = 2027-01-31T00:00:00",
        "[[rule]]\nclient = \"\"\nkind = \"file_read\"\ndecision = \"deny\"",
        "[[rule]]\nclient = \"*\"\nkind = \"everything\"\ndecision = \"deny\"",
        "rules = 1",
    ] {
        assert!(Rules::parse(text).is_err(), "{text}");
    }
}

#[test]
fn ten_thousand_grants_leave_no_more_behind_than_a_thousand() {
    let rules = "[[rule]]\nclient = \"notes\"\nkind = \"file_read\"\ndecision = \"allow\"\nbelow = \"/home\"\nuntil = 2027-01-31";
    let rules = Rules::parse(rules).unwrap();
    let mut grants = Grants::new([1; 6]);
    let mut first = None;
    for number in 0..10_000 {
        let id = grants.ask(START, ask(), &rules).unwrap();
        grants.shown(START, id, shown(ShownKind::Folder), &rules).unwrap();
        let string = grants.claim(id, "notes", &secret(number)).unwrap().reveal().to_owned();
        assert!(read_at(&mut grants, START, &string, "a").is_ok());
        grants.revoke(id);
        first.get_or_insert(string);
    }
    assert_eq!((grants.open(), grants.all().count()), (0, ENDED_MAX));
    assert_eq!(
        read_at(&mut grants, START, &first.unwrap(), "a").unwrap_err(),
        Refusal::Unknown,
        "it is forgotten"
    );
}

/// A step in the life of a table.
#[derive(Clone, Debug)]
enum Step {
    Narrow { of: usize, path: bool, lifetime: Option<u64>, uses: Option<u32>, bytes: Option<u64> },
    Read { of: usize, bytes: u64, kept: u64, moved: u64 },
    Revoke { of: usize },
    Pass { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let of = 0usize..20;
    prop_oneof![
        (
            of.clone(),
            any::<bool>(),
            prop::option::of(0..900_000u64),
            prop::option::of(0..9u32),
            prop::option::of(0..2_000u64)
        )
            .prop_map(|(of, path, lifetime, uses, bytes)| Step::Narrow {
                of,
                path,
                lifetime,
                uses,
                bytes
            }),
        (of.clone(), 0..1_500u64, 0..1_500u64, 0..1_500u64).prop_map(|(of, bytes, kept, moved)| Step::Read {
            of,
            bytes,
            kept,
            moved
        }),
        of.prop_map(|of| Step::Revoke { of }),
        (0..90_000u64).prop_map(|ms| Step::Pass { ms }),
    ]
}

/// Whether one has no more than the other in any way.
fn is_within(less: &Grant, more: &Grant) -> bool {
    more.path.holds(&less.path)
        && less.until <= more.until
        && less.ask.bytes_max <= more.ask.bytes_max
        && more.ask.uses_max.is_none_or(|most| less.ask.uses_max.is_some_and(|least| least <= most))
        && (more.ask.snapshot || !less.ask.snapshot)
        && (less.ask.client == more.ask.client && less.ask.audience == more.ask.audience)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_ever_wider_than_what_it_came_from(steps in prop::collection::vec(step(), 1..60)) {
        let mut grants = Grants::new([1; 6]);
        let (first, string) = live(&mut grants, Ask { uses_max: Some(30), ..ask() });
        let mut held = vec![(first, string, None)];
        let mut now = START;
        let mut moved_in_all = 0;
        for step in steps {
            match step {
                Step::Narrow { of, path, lifetime, uses, bytes } => {
                    let (parent, string, _) = held[of % held.len()].clone();
                    let path = RelativePath::new(if path { "a" } else { "" }).unwrap();
                    let narrower = Narrower { path, lifetime_ms: lifetime, uses_max: uses, bytes_max: bytes, no_snapshot: false };
                    let by = Presented { string: &string, client: "notes", audience: &minilm() };
                    match grants.narrow(now, by, &narrower) {
                        Ok(child) => {
                            let string = grants.claim(child, "notes", &secret(child.0)).unwrap().reveal().to_owned();
                            held.push((child, string, Some(parent)));
                        }
                        Err(NarrowRefusal::Use(_) | NarrowRefusal::Wider(_) | NarrowRefusal::TooDeep | NarrowRefusal::Full(_)) => {}
                    }
                }
                Step::Read { of, bytes, kept, moved } => {
                    let (_, string, _) = held[of % held.len()].clone();
                    let by = Presented { string: &string, client: "notes", audience: &minilm() };
                    if let Ok(mut read) = grants.read(now, by, "x", bytes) {
                        // A file may turn out to be shorter.
                        grants.hold_at_most(&mut read, kept);
                        let moved = moved.min(read.bytes_max());
                        moved_in_all += moved;
                        grants.spent(read, moved);
                    }
                }
                Step::Revoke { of } => {
                    let (id, ..) = held[of % held.len()];
                    grants.revoke(id);
                }
                Step::Pass { ms } => {
                    now = now.after(ms);
                    grants.tick(now);
                }
            }
            for (id, _, parent) in &held {
                let (Some(grant), Some(parent)) = (grants.grant(*id), parent.and_then(|id| grants.grant(id))) else { continue };
                prop_assert!(is_within(grant, parent), "{grant:?} {parent:?}");
                prop_assert!(grant.state != State::Live || parent.state == State::Live);
            }
        }
        prop_assert!(moved_in_all <= 1_000, "the first grant was for 1000 bytes, all together moved {moved_in_all}");
    }
}

fn sound() -> Ask {
    Ask {
        kind: Kind::AudioCapture,
        path: "pulse:fakemic.monitor".to_owned(),
        audience: Audience::Model("whisper".to_owned()),
        bytes_max: 0,
        ..ask()
    }
}

/// A live grant of sound, and its string.
fn live_sound(grants: &mut Grants, ask: Ask) -> (GrantId, String) {
    let id = grants.ask(START, ask, &Rules::default()).unwrap();
    grants.shown(START, id, Shown::source(), &Rules::default()).unwrap();
    grants.decide(START, id, Decision::Approve { lifetime_ms: None }, OTHER).unwrap();
    (id, grants.claim(id, "notes", &secret(id.0)).unwrap().reveal().to_owned())
}

fn capture_at(
    grants: &mut Grants,
    now: Moment,
    string: &str,
    rules: &Rules,
) -> Result<AudioCapture, Refusal> {
    let by = Presented { string, client: "notes", audience: &Audience::Model("whisper".to_owned()) };
    grants.capture(now, by, rules)
}

#[test]
fn sound_is_granted_from_a_source_for_a_model_and_a_quarter_of_an_hour() {
    let mut grants = Grants::new([1; 6]);
    let mut refused = |ask| grants.ask(START, ask, &Rules::default()).unwrap_err();
    for path in ["", "/dev/snd/pcmC0D0c", "microphone", "pulse:", "pushed:x", "pulse:a\nApproved"] {
        let refusal = refused(Ask { path: path.to_owned(), ..sound() });
        assert!(matches!(refusal, AskRefusal::Source(_)), "{path:?}");
    }
    assert_eq!(refused(Ask { audience: Audience::Client, ..sound() }), AskRefusal::SoundWithoutModel);
    assert_eq!(refused(Ask { bytes_max: 1, ..sound() }), AskRefusal::NotOfSound("bytes_max"));
    assert_eq!(refused(Ask { snapshot: true, ..sound() }), AskRefusal::NotOfSound("snapshot"));
    for lifetime_ms in [0, AUDIO_LIFETIME_MS_MAX + 1] {
        let refusal = refused(Ask { lifetime_ms, ..sound() });
        assert_eq!(refusal, AskRefusal::Range("lifetime", AUDIO_LIFETIME_MS_MAX));
    }
    let (id, string) = live_sound(&mut grants, Ask { uses_max: Some(1), ..sound() });
    let capture = capture_at(&mut grants, START, &string, &Rules::default()).unwrap();
    assert_eq!(capture.source(), &Source::Pulse(Some("fakemic.monitor".to_owned())));
    assert_eq!((capture.grant(), capture.until_boot_ms()), (id, START.boot_ms + 10 * MINUTE));
    assert_eq!(capture_at(&mut grants, START, &string, &Rules::default()).unwrap_err(), Refusal::UsedUp);
    let whisper = Audience::Model("whisper".to_owned());
    let by = Presented { string: &string, client: "notes", audience: &whisper };
    assert_eq!(grants.read(START, by, "", 1).unwrap_err(), Refusal::OutOfScope, "sound is no file");
    let (_, of_file) = live(&mut grants, ask());
    let by = Presented { string: &of_file, client: "notes", audience: &minilm() };
    assert_eq!(
        grants.capture(START, by, &Rules::default()).unwrap_err(),
        Refusal::OutOfScope,
        "nor a file sound"
    );
}

#[test]
fn each_wrong_string_for_sound_is_refused_with_its_own_code() {
    let mut grants = Grants::new([1; 6]);
    let (id, string) = live_sound(&mut grants, sound());
    let whisper = Audience::Model("whisper".to_owned());
    let right = Presented { string: &string, client: "notes", audience: &whisper };
    let code = |grants: &mut Grants, now, by| grants.capture(now, by, &Rules::default()).unwrap_err().code();
    assert_eq!(code(&mut grants, START, Presented { string: "rfg_", ..right }), "capability_malformed");
    assert_eq!(code(&mut grants, START, Presented { client: "mail", ..right }), "capability_wrong_holder");
    let other = Presented { audience: &Audience::Client, ..right };
    assert_eq!(code(&mut grants, START, other), "capability_wrong_audience");
    assert_eq!(code(&mut Grants::new([2; 6]), START, right), "capability_of_another_run");
    assert_eq!(code(&mut Grants::new([1; 6]), START, right), "capability_unknown");
    let back = Moment { wall_ms: START.wall_ms - 5_000, ..START };
    assert_eq!(code(&mut grants, back, right), "clock_turned_back");
    assert_eq!(code(&mut grants, START.after(10 * MINUTE), right), "grant_expired");
    grants.revoke(id);
    assert_eq!(code(&mut grants, START, right), "grant_revoked");
}

#[test]
fn rules_of_sound_name_a_source_and_what_is_done_to_it() {
    let rules = Rules::parse(
        r#"
        [[rule]]
        client = "notes"
        kind = "audio_capture"
        decision = "allow"
        source = "pulse:fakemic.monitor"
        until = 2027-01-31
        transforms = [{ high_pass = { hz = 80 } }, "obfuscate"]
        "#,
    )
    .unwrap();
    let mut grants = Grants::new([1; 6]);
    let mut state = |path: &str| {
        let id = grants.ask(START, Ask { path: path.to_owned(), ..sound() }, &rules).unwrap();
        (id, grants.shown(START, id, Shown::source(), &rules).unwrap())
    };
    assert_eq!(state("pulse").1, State::Pending);
    let (id, live) = state("pulse:fakemic.monitor");
    assert_eq!(live, State::Live);
    let string = grants.claim(id, "notes", &secret(id.0)).unwrap().reveal().to_owned();
    let capture = capture_at(&mut grants, START, &string, &rules).unwrap();
    assert_eq!(capture.transforms(), [Transform::HighPass { hz: 80 }, Transform::Obfuscate]);
    let rule = |rest: &str| {
        Rules::parse(&format!("[[rule]]\nclient = \"*\"\nkind = \"audio_capture\"\n{rest}")).is_ok()
    };
    assert!(rule("decision = \"deny\""));
    for wrong in [
        "decision = \"allow\"\nuntil = 2027-01-31",
        "decision = \"allow\"\nsource = \"pulse\"",
        "decision = \"ask\"\nsource = \"microphone\"",
        "decision = \"ask\"\nbelow = \"/a\"",
        "decision = \"ask\"\ntransforms = [{ high_pass = { hz = 1 } }]",
        "decision = \"ask\"\ntransforms = [\"louder\"]",
    ] {
        assert!(!rule(wrong), "{wrong}");
    }
    let of_files = "[[rule]]\nclient = \"*\"\nkind = \"file_read\"\ndecision = \"ask\"\nsource = \"pulse\"";
    assert!(Rules::parse(of_files).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sound_is_narrowed_to_less_time_and_fewer_uses_only(
        lifetime in prop::option::of(0..900_000u64), uses in prop::option::of(0..9u32), bytes in prop::option::of(0..9u64),
        path in any::<bool>(), later in 0..700_000u64,
    ) {
        let mut grants = Grants::new([1; 6]);
        let (id, string) = live_sound(&mut grants, Ask { uses_max: Some(5), ..sound() });
        let path = RelativePath::new(if path { "a" } else { "" }).unwrap();
        let narrower = Narrower { path: path.clone(), lifetime_ms: lifetime, uses_max: uses, bytes_max: bytes, no_snapshot: false };
        let whisper = Audience::Model("whisper".to_owned());
        let by = Presented { string: &string, client: "notes", audience: &whisper };
        let now = START.after(later);
        if let Ok(child) = grants.narrow(now, by, &narrower) {
            prop_assert!(path.is_root() && bytes.is_none());
            let (less, more) = (grants.grant(child).unwrap().clone(), grants.grant(id).unwrap().clone());
            prop_assert!(is_within(&less, &more), "{less:?} {more:?}");
            let string = grants.claim(child, "notes", &secret(99)).unwrap().reveal().to_owned();
            let capture = capture_at(&mut grants, now, &string, &Rules::default()).unwrap();
            prop_assert!(capture.until_boot_ms() <= START.boot_ms + 10 * MINUTE);
            prop_assert_eq!(grants.grant(id).unwrap().uses, 1, "its uses count for the other");
        }
    }
}
