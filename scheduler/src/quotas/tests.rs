use super::*;
use crate::config::{Class, Order};

fn parse(text: &str) -> Quotas {
    Quotas::parse(text).unwrap_or_else(|error| panic!("{error}\nin\n{text}"))
}

/// The documented file with every default set.
fn uncommented() -> String {
    let live = |line: &str| {
        let rest = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ') && !rest.is_empty());
        rest.unwrap_or(line).to_owned()
    };
    documented().lines().map(live).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_documented_file_is_legal_sets_nothing_and_says_the_defaults() {
    assert_eq!(parse(&documented()), Quotas::default());
    let set = parse(&uncommented());
    assert_eq!(Quotas::default().changes(&set), [], "{}", uncommented());
    assert!(set.models.contains_key(DEFAULT) && set.clients.contains_key(DEFAULT));
}

#[test]
fn every_key_is_documented_with_a_legal_example() {
    let text = documented();
    for (section, keys) in sections() {
        assert!(text.contains(&format!("#[{section}]\n")), "{section}");
        for key in keys {
            assert!(!key.doc.is_empty() && !key.legal.is_empty(), "{section}.{}", key.name);
            let (default, example) = (key.default.clone(), key.words.map(|words| words.1.to_owned()));
            assert!(text.contains(&format!("{} = ", key.name)), "{section}.{}", key.name);
            let value = default.or(example).unwrap();
            let rate = key.name.strip_suffix("_burst").map(|name| format!("{name}_per_minute = 6\n"));
            let rate = rate.or((key.name == "node").then(|| "driver = \"mesa\"\n".to_owned()));
            parse(&format!("[{section}]\n{}{} = {value}", rate.unwrap_or_default(), key.name));
        }
    }
    assert!(text.lines().all(|line| line.len() <= 240), "lines of the file can be read");
}

#[test]
fn the_examples_of_the_documentation_are_legal() {
    for page in [include_str!("../../../docs/quotas.md"), include_str!("../../../README.md")] {
        let blocks: Vec<&str> = page.split("```toml\n").skip(1).collect();
        assert!(!blocks.is_empty());
        blocks.iter().for_each(|block| drop(parse(block.split("```").next().unwrap())));
    }
}

#[test]
fn an_empty_file_has_every_default_and_a_model_falls_back_to_the_default_section() {
    let quotas = parse("");
    assert_eq!(quotas.model("any").concurrency, 64);
    assert_eq!(quotas.model("any").on_disk_change, OnDiskChange::RefuseNew);
    assert_eq!(quotas.model("any").step_ms, 20);
    let ignoring = parse("[models.default]\non_disk_change = \"ignore\"");
    assert_eq!(ignoring.model("any").on_disk_change, OnDiskChange::Ignore);
    let quotas = parse("[models.default]\nworkers = 2\nqueue = 7\n[models.a]\nworkers = 3");
    assert_eq!((quotas.model("a").workers, quotas.model("b").workers), (3, 2));
    assert_eq!(
        (quotas.model("a").queue, quotas.model("b").queue),
        (1_024, 7),
        "a section replaces `default` whole"
    );
}

#[test]
fn budgets_are_what_the_file_says_or_parts_of_the_machine() {
    let config = |text: &str| parse(text).config(1_000 * MIB, 8).map(|config| config.values().clone());
    let values = config("").unwrap();
    assert_eq!((values.devices.cpu.budget_bytes, values.devices.cpu.cores), (500 * MIB, 8));
    assert_eq!((values.host_budget_bytes, values.queue_total_max), (250 * MIB, 4_096));
    assert_eq!((values.order, values.aging), (Order::Fair, Duration::from_secs(10)));
    let text = "[devices.cpu]\nmemory_mib = 300\nreserve_mib = 100\ncores = 2\n[devices.host]\nmemory_mib = 5\n\
                [queues]\ntotal = 9\norder = \"arrival\"\naging_ms = 5";
    let values = config(text).unwrap();
    assert_eq!((values.devices.cpu.budget_bytes, values.devices.cpu.cores), (200 * MIB, 2));
    assert_eq!((values.host_budget_bytes, values.queue_total_max), (5 * MIB, 9));
    assert_eq!((values.order, values.aging), (Order::Arrival, Duration::from_millis(5)));
    let error = config("[devices.cpu]\nreserve_mib = 500").unwrap_err();
    assert_eq!((error.field, error.value, error.most), ("devices.cpu.reserve_mib", 500, 499));
}

#[test]
fn a_client_has_its_section_or_the_default_ones_values() {
    let quotas = parse(
        "[queues]\nper_client = 9\n[clients.default]\nweight = 2\n[clients.notes]\nclass = \"batch\"\n\
         jobs_per_minute = 60\ndevice_ms_per_minute = 5\ntokens_per_minute = 100\ntokens_burst = 7\n\
         [clients.\"uid:1000\"]\nqueue = 3",
    );
    assert_eq!(quotas.client("other"), None);
    let default = quotas.default_client().values().clone();
    assert_eq!((default.weight, default.class, default.queue_max), (2, Class::Interactive, 9));
    assert_eq!((default.jobs, default.device_us, default.tokens), (None, None, None));
    let notes = quotas.client("notes").unwrap().values().clone();
    assert_eq!((notes.weight, notes.class, notes.queue_max), (1, Class::Batch, 9));
    assert_eq!(notes.jobs, Some(Rate { per_minute: 60, burst: 10 }));
    assert_eq!(notes.device_us, Some(Rate { per_minute: 5_000, burst: 1_000 }), "at least one millisecond");
    assert_eq!(notes.tokens, Some(Rate { per_minute: 100, burst: 7 }));
    assert_eq!(quotas.client("uid:1000").unwrap().values().queue_max, 3);
}

#[test]
fn the_largest_values_of_the_file_are_legal_for_the_scheduler() {
    for (section, keys) in sections() {
        for key in keys {
            let Some(most) = key.legal.rsplit_once(" to ").and_then(|(_, most)| most.parse::<u64>().ok())
            else {
                continue;
            };
            let rate = key.name.strip_suffix("_burst").map(|name| format!("{name}_per_minute = 6\n"));
            let memory = if key.name == "reserve_mib" { continue } else { rate.unwrap_or_default() };
            let quotas = parse(&format!("[{section}]\n{memory}{} = {most}", key.name));
            quotas.config(1_000 * MIB, 8).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

#[test]
fn a_client_may_use_the_models_of_its_section() {
    let quotas = parse(
        "[clients.default]\nmodels = [\"mini*\"]\n[clients.all]\n[clients.none]\nmodels = []\n\
         [clients.two]\nmodels = [\"a\", \"b*\"]",
    );
    let check = |client: &str, model: &str, may: bool| {
        assert_eq!(quotas.may_use(client, model), may, "{client} {model}");
    };
    check("other", "minilm", true);
    check("other", "whisper", false);
    check("all", "whisper", true);
    check("none", "minilm", false);
    check("two", "a", true);
    check("two", "bc", true);
    check("two", "ab", false);
    assert!(parse("").may_use("any", "thing"));
}

#[test]
fn deadlines_are_cut_to_the_longest_and_given_where_one_is_set() {
    let quotas = parse("[clients.a]\ndeadline_max_ms = 50");
    let ms = Duration::from_millis;
    assert_eq!(quotas.deadline("a", None), Some(ms(50)));
    assert_eq!(quotas.deadline("a", Some(ms(60))), Some(ms(50)));
    assert_eq!(quotas.deadline("a", Some(ms(40))), Some(ms(40)));
    assert_eq!(quotas.deadline("b", None), None);
    assert_eq!(quotas.deadline("b", Some(ms(60))), Some(ms(60)));
    assert_eq!((quotas.deadline_max("a"), quotas.deadline_max("b")), (ms(50), DEADLINE_MAX));
}

#[test]
fn fallbacks_lead_somewhere_and_not_in_a_circle() {
    let quotas = parse("[models.default]\nfallback = \"small\"\n[models.big]\nfallback = \"middle\"");
    assert_eq!(quotas.fallback("big"), Some("middle"));
    assert_eq!(quotas.fallback("middle"), Some("small"));
    assert_eq!((quotas.fallback("small"), quotas.model("small").fallback), (None, None));
    assert_eq!(quotas.model("middle").fallback.as_deref(), Some("small"));
}

#[test]
fn every_wrong_file_is_refused_with_its_line_and_field() {
    let check = |text: &str, line: usize, expected: &str| {
        let error = Quotas::parse(text).err().unwrap_or_else(|| panic!("{text}"));
        assert_eq!(error.line, Some(line), "{text}: {error}");
        let message = error.to_string();
        assert!(message.contains(expected), "{text}: {message}");
    };
    check("x", 1, "");
    check("[queues]\ntotal = 5\ntotal = 6", 3, "");
    check("[queues]\ntotal = ", 2, "");
    check("[device]", 1, "device is unknown");
    check("queues = 5", 1, "queues must be a section: [queues]");
    check("[[models.a]]", 1, "models.a must be a section");
    check("[devices.GPU]", 1, "devices.GPU is unknown; there are cpu, host, a GPU's name");
    check(
        "[devices.a]\nnode = \"/dev/dri/renderD128\"",
        2,
        "devices.a.node is set, but the driver is in software",
    );
    check("[devices.a]\ndriver = \"mesa\"", 2, "devices.a.driver needs devices.a.node");
    check("[devices.a]\ndriver = \"cuda\"", 2, "it must be \"software\" or \"mesa\" or \"nvidia\"");
    let twice =
        "[devices.a]\ndriver = \"nvidia\"\nnode = \"0\"\n[devices.b]\ndriver = \"nvidia\"\nnode = \"0\"";
    check(twice, 6, "devices.b.node is that of devices.a already");
    check(
        "[models.m]\ndevice = \"b\"\n[devices.a]",
        2,
        "models.m.device is \"b\"; there are cpu, wgpu for any GPU, and a",
    );
    check("[models.m]\ndevice = \"host\"", 2, "models.m.device is \"host\"");
    check("\n[models.a]\nworkers = 0", 3, "line 3: models.a.workers is 0; it must be from 1 to 64");
    check("[models.a]\nconcurrency = 257", 2, "models.a.concurrency is 257");
    check("[models.a]\nworkers = 1\nlease_gib = 1", 3, "models.a.lease_gib is unknown");
    check("[models.a]\non_disk_change = \"refuse\"", 2, "it must be \"refuse_new\" or \"ignore\"");
    check("[models.\"a.b\"]\nqueue = 0", 2, "models.\"a.b\".queue is 0");
    check("[queues]\ntotal = -1", 2, "queues.total is -1");
    check("[queues]\ntotal = 0x0", 2, "queues.total");
    check("[queues]\ntotal = 99999999999999999999", 2, "it must be from 1 to 1000000");
    check("[queues]\ntotal = 1.5", 2, "queues.total is 1.5");
    check("[queues]\ntotal = \"many\"", 2, "queues.total is \"many\"");
    check("[queues]\norder = \"random\"", 2, "\"fair\" or \"arrival\"");
    check("[models.a]\nstep_limit_ms = 0", 2, "models.a.step_limit_ms is 0");
    check("[models.a]\nstep_ms = 51", 2, "from 1 to 50");
    check("[models.a]\nfallback = \"a\"", 2, "models.a.fallback is \"a\", and that leads back to a");
    check("[models.a]\nfallback = \"b\"\n[models.b]\nfallback = \"a\"", 2, "leads back to a");
    let circle = "[models.default]\nfallback = \"s\"\n[models.s]\nfallback = \"t\"";
    check(circle, 2, "leads back to s");
    check("[models.a]\nfallback = \"\"", 2, "the name of a model");
    check("[clients.notes]\nweight = 1001", 2, "clients.notes.weight is 1001; it must be from 1 to 1000");
    check("[clients.notes]\nclass = \"first\"", 2, "\"realtime\" or \"interactive\" or \"batch\"");
    check("[clients.notes]\n\njobs_burst = 5", 3, "jobs_burst is set without clients.notes.jobs_per_minute");
    check("[clients.notes]\nmodels = \"a\"", 2, "a list of names");
    check("[clients.notes]\nmodels = [1]", 2, "has an entry that is 1");
    check("[clients.Notes]", 1, "clients.Notes is no client");
    check("[clients.system]", 1, "is no client");
    check("[clients.\"uid:x\"]", 1, "is no client");
    check("[clients.\"uid:01\"]", 1, "is no client");
    check("[devices.cpu]\nmemory_mib = 5\nreserve_mib = 5", 3, "it must be less than devices.cpu.memory_mib");
    check("[queues]\ntotal = 0\n[models.a]\nworkers = 0", 2, "queues.total");
    check("[models.a]\nworkers = 0\n[clients.a]\nweight = 0", 2, "models.a.workers");
}

#[test]
fn a_file_that_is_too_long_or_no_text_is_refused() {
    assert!(Quotas::parse(&"#".repeat(FILE_BYTES_MAX)).is_ok());
    assert!(Quotas::parse(&"#".repeat(FILE_BYTES_MAX + 1)).is_err());
    let error = Quotas::parse_bytes(b"\n\n\xff").unwrap_err();
    assert_eq!(error.to_string(), "line 3: the file is not UTF-8");
}

#[test]
fn changes_are_those_of_values_that_count() {
    let changes = |from: &str, to: &str| {
        let changes = parse(from).changes(&parse(to));
        changes
            .iter()
            .map(|change| format!("{} {} {}", change.field, change.from, change.to))
            .collect::<Vec<_>>()
    };
    assert_eq!(changes("", "[queues]\ntotal = 4096\n[clients.a]"), [""; 0]);
    assert_eq!(changes("", "[queues]\ntotal = 7"), ["queues.total 4096 7"]);
    let memory = "devices.cpu.memory_mib half of the machine's memory 5";
    assert_eq!(changes("", "[devices.cpu]\nmemory_mib = 5"), [memory]);
    assert_eq!(
        changes("[queues]\nper_client = 5", ""),
        ["queues.per_client 5 256", "clients.default.queue 5 256"]
    );
    assert_eq!(
        changes(
            "[models.default]\nworkers = 2",
            "[models.default]\nworkers = 2\n[models.\"a.b\"]\nqueue = 3"
        ),
        ["models.\"a.b\".workers 2 1", "models.\"a.b\".queue 1024 3"]
    );
    assert_eq!(
        changes("", "[clients.\"uid:7\"]\njobs_per_minute = 60\nmodels = [\"a\", \"b*\"]"),
        [
            "clients.\"uid:7\".models * a b*",
            "clients.\"uid:7\".jobs_per_minute no limit 60",
            "clients.\"uid:7\".jobs_burst a sixth of jobs_per_minute 10"
        ]
    );
}

#[test]
fn what_counts_is_listed_with_units() {
    let effective = parse("[clients.notes]\nweight = 3").effective();
    let of = |field: &str| effective.iter().find(|value| value.field == field).unwrap();
    assert_eq!(
        (of("queues.aging_ms").value.clone(), of("queues.aging_ms").unit),
        (Shown::Number(10_000), "ms")
    );
    assert_eq!(of("clients.notes.weight").value, Shown::Number(3));
    assert_eq!(of("clients.default.queue").value, Shown::Number(256));
    assert_eq!(of("clients.default.class").value, Shown::Text("interactive".to_owned()));
    assert_eq!(of("clients.default.models").value, Shown::List(vec!["*".to_owned()]));
}

#[test]
fn gpus_are_numbered_by_name_and_a_model_is_on_any_or_on_one() {
    let quotas = parse(
        "[devices.b]\nmemory_mib = 2\n[devices.a]\nmemory_mib = 1\ndriver = \"mesa\"\nnode = \"/dev/dri/renderD128\"\n\
         [models.any]\ndevice = \"wgpu\"\n[models.one]\ndevice = \"b\"",
    );
    let values = quotas.config(1_000 * MIB, 8).unwrap().values().clone();
    assert_eq!(values.devices.gpu_budgets_bytes, [MIB, 2 * MIB]);
    let of = |model: &str| {
        quotas
            .config_of(&quotas.model(model), quotas.threads(model, 8), 5, 0, false)
            .unwrap()
            .values()
            .clone()
    };
    assert_eq!((of("any").gpus, of("any").device_lease_bytes), (vec![GpuId(0), GpuId(1)], 5));
    assert_eq!((of("one").gpus, of("other").gpus), (vec![GpuId(1)], vec![]));
    let live = parse("[devices.wgpu]\nmemory_mib = 7");
    let changes: Vec<String> =
        Quotas::default().changes(&live).into_iter().map(|change| change.field).collect();
    assert_eq!(changes, ["devices.wgpu.memory_mib"]);
}
