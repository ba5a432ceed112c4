//! Templates that want to take all memory or all time: each ends soon, in an error, within the memory that is documented.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ringfence_sandbox::CountingAllocator;
use ringfence_worker::generation::template::{
    ChatTemplate, Message, SpecialTokens, TEMPLATE_BYTES_MAX, TemplateError, render_bytes_max,
};
use std::sync::{Mutex, PoisonError};

/// One at a time: the allocator counts what all threads have.
static TURN: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Ends as `ends` says, having taken no more memory than is documented.
#[track_caller]
fn check(template: &str, ends: impl FnOnce(&Result<usize, TemplateError>) -> bool) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    CountingAllocator::restart_peak();
    let before = CountingAllocator::used();
    let messages = [Message { role: "user", content: "abc" }];
    let result = ChatTemplate::parse(template)
        .and_then(|template| template.render_parts(&messages, &SpecialTokens::default()))
        .map(|parts| parts.iter().map(|part| part.text.len()).sum());
    let taken = CountingAllocator::peak() - before;
    let shown: String = template.chars().take(80).collect();
    eprintln!("{taken:>10} bytes, {result:?}: {shown}");
    assert!(ends(&result), "{result:?}: {shown}");
    assert!(taken <= render_bytes_max(&messages), "{taken} bytes: {shown}");
}

fn fails(result: &Result<usize, TemplateError>) -> bool {
    result.is_err()
}

fn ends(_: &Result<usize, TemplateError>) -> bool {
    true
}

#[test]
fn texts_that_grow_run_out_of_fuel() {
    for template in [
        "{{ 'a' * 1000000000 }}",
        "{{ 'a' * 90000000 }}",
        "{% set x = 'a' * 90000000 %}",
        "{{ 1000000000 * 'a' }}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s | length }}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s | length }}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s | replace('a', 'aa') %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('a', 'aa') %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s.join([ns.s, ns.s, ns.s]) %}{% endfor %}",
        "{{ ('a' * 1000000).replace('', 'b' * 1000) | length }}",
        "{{ ('a' * 1000000) | replace('', 'b' * 1000) | length }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 1000) | length }}",
        "{{ ('a\n' * 1000000) | indent(100000) | length }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '%.1000000000f' | format(1) }}",
        "{{ ('%d' * 1000000) | format(1) }}",
        "{{ ('a,' * 10000000).split(',') | length }}",
        "{{ ('a,' * 10000000) | split(',') | length }}",
        "{{ ('a\n' * 10000000) | lines | length }}",
        "{{ ('a' * 10000000) | list | length }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        "{{ ('\u{fdd0}a\u{fdd1}b' * 5000000) | trim | length }}",
    ] {
        check(template, fails);
    }
}

#[test]
fn lists_that_grow_run_out_of_fuel() {
    for template in [
        "{{ range(10**9) | list }}",
        "{{ range(1000000000000) | length }}",
        "{{ ([0] * 90000000) | list | length }}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{{ range(100000) | list | length }}{% endfor %}",
        "{% for a in range(100000) %}{{ range(100000) | sum }}{% endfor %}",
        "{% for a in range(100000) %}{{ 100001 in range(100000) }}{% endfor %}",
        "{% for a in range(100000) %}{{ range(100000) | max }}{% endfor %}",
        "{% for a in range(100000) %}{{ range(100000) | last }}{% endfor %}",
        "{% for a in range(100000) %}{{ range(100000)[99999] }}{% endfor %}",
        "{% for a in range(100000) %}{{ range(100000) | reverse | first }}{% endfor %}",
        "{% for a in range(100000) %}{{ range(100000) | unique | length }}{% endfor %}",
        "{% for a in range(100000) %}{{ range(100000) | sort | length }}{% endfor %}",
        "{% for a in range(100000) %}{{ range(100000) | batch(7) | length }}{% endfor %}",
        "{{ [1] | batch(1000000000, 0) | length }}",
        "{{ [1] | slice(1000000000) | length }}",
        "{% set ns = namespace(l=[0]) %}{% for i in range(60) %}{% set ns.l = ns.l | chain(ns.l) | list %}{% endfor %}",
        "{% set ns = namespace(n=2) %}{% for i in range(100000) %}{% set ns.n = ns.n ** 2 %}{% endfor %}",
        "{{ 10 ** 1000000000 }}",
    ] {
        check(template, fails);
    }
}

/// What grows by itself is small here; only what is done with it is large. What the engine does not count (`==`, `~`,
/// filters that make text of a list) is the worker's lease's and deadline's to end.
#[test]
fn lists_that_hold_a_list_twice_and_so_on_are_not_written_out() {
    let build =
        "{% set ns = namespace(l=[1]) %}{% for i in range(40) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}";
    for act in
        ["ns.l", "ns.l | tojson", "{'a': ns.l} | tojson", "ns.l | replace('a', 'b')", "raise_exception(ns.l)"]
    {
        check(&format!("{build}{{{{ {act} }}}}"), fails);
    }
}

#[test]
fn nesting_ends_before_the_stack_does() {
    let nested = |open: &str, middle: &str, close: &str| {
        let levels = (TEMPLATE_BYTES_MAX - 100) / (open.len() + close.len());
        open.repeat(levels) + middle + &close.repeat(levels)
    };
    for template in [
        "{{ ".to_owned() + &nested("(", "1", ")") + " }}",
        "{{ ".to_owned() + &nested("[", "1", "]") + " }}",
        "{{ ".to_owned() + &nested("{1:", "1", "}") + " }}",
        "{{ ".to_owned() + &nested("-", "1", "") + " }}",
        "{{ ".to_owned() + &nested("not ", "1", "") + " }}",
        "{{ ".to_owned() + &nested("1 if ", "1", " else 1") + " }}",
        nested("{% if 1 %}", "a", "{% endif %}"),
        nested("{% for a in [1] %}", "a", "{% endfor %}"),
        nested("{% set a %}", "a", "{% endset %}"),
        nested("{% with a=1 %}", "a", "{% endwith %}"),
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{% macro f(n) %}{% for a in [1] %}{{ g(n) }}{% endfor %}{% endmacro %}{% macro g(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
    ] {
        check(&template, fails);
    }
    for template in [
        "{{ 1".to_owned() + &"+1".repeat(32_000) + " }}",
        "{{ a".to_owned() + &".a".repeat(32_000) + " }}",
        "{{ a".to_owned() + &"|e".repeat(32_000) + " }}",
        "{{ a".to_owned() + &"()".repeat(32_000) + " }}",
        "{{ a".to_owned() + &"[0]".repeat(21_000) + " }}",
        "{{ 1".to_owned() + &"<1".repeat(32_000) + " }}",
        "{{ 1".to_owned() + &" or 1".repeat(13_000) + " }}",
        "{% if 0 %}".to_owned() + &"{% elif 0 %}".repeat(5_000) + "{% endif %}",
    ] {
        check(&template, ends);
    }
}

#[test]
fn a_list_in_a_list_and_so_on_is_let_go_of_without_the_stack() {
    for build in [
        "[ns.l]",
        "{'a': ns.l}",
        "(ns.l,)",
        "namespace(a=ns.l)",
        "dict(a=ns.l)",
        "ns.l | map('string')",
        "[ns.l] | chain([1])",
        "[ns.l][:1]",
        "[ns.l] | reverse",
        "ns.l * 1",
    ] {
        for act in [
            "",
            "{{ ns.l }}",
            "{{ ns.l | tojson }}",
            "{{ ns.l == [ns.l] }}",
            "{{ ns.l < [ns.l] }}",
            "{{ {ns.l: 1} }}",
            "{{ ns.l | string }}",
            "{{ ns.l | list }}",
        ] {
            let template = format!(
                "{{% set ns = namespace(l=[1]) %}}{{% for i in range(100000) %}}{{% set ns.l = {build} %}}{{% endfor %}}{act}"
            );
            check(&template, ends);
        }
    }
}
