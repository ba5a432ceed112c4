//! `ringfence stress`: holds a running server's promises against what it does under stress.

use super::client_name;
use crate::error::CliError;
use crate::home::Home;
use crate::http;
use crate::output::{Output, progress_of};
use crate::stress::audio::{self, Clip};
use crate::stress::chart::ChartFile;
use crate::stress::grants::{self, Part};
use crate::stress::oom::{self, Device, Path};
use crate::stress::promise::{Findings, Report};
use crate::stress::server::Server;
use crate::stress::{self, Extent, Scenario};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::PathBuf;

/// Rounds of scenarios and tries of paths where nobody says a number, and the most.
const ROUNDS: u32 = 5;
const ROUNDS_MAX: u32 = 1_000;

/// Hold a running server's promises against what it does under stress
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence stress noisy-neighbour
  ringfence stress hung-worker crash-loop --rounds 2
  ringfence stress --all --seconds 5 --rounds 1 --json
  ringfence stress --all --chart stress.svg --chart stress.png
  ringfence stress --oom --device wgpu --rounds 3
  ringfence stress --grants --rounds 1000
  ringfence stress --grants --part revocation --part expiry --json
  ringfence stress --audio
  ringfence stress --audio --clip jfk.wav --streams 16

It adds the clients stress-*, and sets quotas for the time of a scenario; the text from before is then put back, also
after ctrl-c. It has to reach admin.sock and the clients' sockets; hung-worker and crash-loop also signal the worker,
so run it as root or as the server's user. --grants makes files in the temporary folder ($TMPDIR) and puts rules for
them before those of grants.toml, which is then put back; its clients are removed. It is no measure of a server with other work at the same time.

It ends with 0 where every promise held or was skipped, with 1 and the code promise_broken where one did not.
JSON of --json: {\"model\",\"seconds\",\"rounds\",
  \"promises\":[{\"scenario\",\"promise\",\"measured\",\"bound\":{\"at_most\"|\"at_least\"},\"unit\",
               \"verdict\":\"held\"|\"broken\"|\"skipped\",\"note\"}],
  \"figures\":[{\"scenario\",\"name\",\"value\",\"unit\"}], \"error\":{\"code\",\"message\"}|null}
JSON of --oom --json: {\"model\",\"device\",\"rounds\",
  \"paths\":[{\"path\",\"done\",\"tries\",\"caught\":{RUNG:N},\"served\",\"unnamed\":{CODE:N},
            \"recovery_ms\":{\"p50\",\"p99\"}|null,\"others\":{\"answered\",\"refused\",\"lost\",\"wrong\"}|null,
            \"verdict\",\"note\"}], \"error\":{\"code\",\"message\"}|null}
RUNG is refused-by-profile, refused-by-worker, killed-by-kernel or killed-by-reconcile.")]
pub struct StressArgs {
    /// What to do to the server
    #[arg(value_enum, value_name = "SCENARIO", required_unless_present_any = ["all", "oom", "grants", "audio"])]
    scenarios: Vec<Scenario>,
    /// Every scenario
    #[arg(long, conflicts_with_all = ["scenarios", "oom"])]
    all: bool,
    /// Every way to want too much memory: what stops it, how long until the next answer, what others lose
    #[arg(long, conflicts_with = "scenarios")]
    oom: bool,
    /// What is promised about grants: refusals, revocation and expiry in mid-job, many grants, escapes, floods of questions
    #[arg(long, conflicts_with_all = ["scenarios", "all", "oom"])]
    grants: bool,
    /// What is promised about live sound: streams at a time, how soon texts come, revocation, and that no sound is kept
    #[arg(long, conflicts_with_all = ["scenarios", "all", "oom", "grants"])]
    audio: bool,
    /// Speech that is pushed: a WAV file; else two sentences that espeak-ng speaks
    #[arg(long, value_name = "FILE", requires = "audio", conflicts_with_all = ["scenarios", "all", "oom", "grants"])]
    clip: Option<PathBuf>,
    /// Streams at a time: 1 to 16
    #[arg(long, value_name = "N", requires = "audio", default_value_t = audio::STREAMS, value_parser = clap::value_parser!(u32).range(1..=16))]
    streams: u32,
    /// Only this, instead of all that is promised about grants
    #[arg(long, value_enum, value_name = "PART", requires = "grants", conflicts_with_all = ["scenarios", "all", "oom"])]
    part: Vec<Part>,
    /// Where the model computes while it wants too much
    #[arg(long, value_enum, requires = "oom", conflicts_with_all = ["scenarios", "all"])]
    device: Option<Device>,
    /// Only this way, instead of every one that the device has
    #[arg(long, value_enum, value_name = "PATH", requires = "oom", conflicts_with_all = ["scenarios", "all"])]
    path: Vec<Path>,
    /// The model to ask
    #[arg(long, default_value = "minilm", default_value_if("audio", "true", "whisper-tiny.en"), value_parser = client_name)]
    model: String,
    /// Tokens in a text, special ones included
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(3..=512))]
    tokens: u32,
    /// Seconds of one phase: 1 to 600
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Rounds of scenarios that have some, tries of each path: 1 to 1000 [default: 5]; grants one after the other, and the
    /// most of anything else of --grants: 1 to 100000 [default: 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: Option<u32>,
    /// Draw what was measured; the file ends in .svg or .png
    #[arg(long, value_name = "FILE", value_parser = ChartFile::parse)]
    chart: Vec<ChartFile>,
}

/// Runs it.
///
/// # Errors
/// [`CliError::Broken`] where a promise did not hold, and those of [`stress::run`] and of the charts.
pub fn run(args: StressArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    if args.oom {
        return run_oom(&args, home, output);
    }
    if args.grants {
        return run_grants(args, home, output);
    }
    if args.audio {
        return run_audio(args, home, output);
    }
    let server = Server::new(home, &args.model, args.tokens);
    let extent = args.extent()?;
    let runtime = http::runtime()?;
    // A file that can't be written is better known before the stress than after it.
    args.chart.iter().try_for_each(|chart| chart.draw(&[]))?;
    let mut all = Vec::new();
    for scenario in wanted(&args) {
        match runtime.block_on(one(scenario, &server, extent, output)) {
            Ok(findings) => all.push(findings),
            Err(error) => return Err(ended_early(&args, &all, output, error)),
        }
    }
    reported(args, extent, &all, output)
}

/// Prints and draws what was found; an error where a promise broke.
fn reported(args: StressArgs, extent: Extent, all: &[Findings], output: &Output) -> Result<(), CliError> {
    let mut report = Report::new(args.model, extent, all);
    let broken = report.broken();
    let error = (!broken.is_empty()).then_some(CliError::Broken { promises: broken });
    report.error = error.as_ref().map(|error| json!({"code": error.code(), "message": error.to_string()}));
    output.answer(&report, |style| report.page(style))?;
    let panels: Vec<_> = all.iter().flat_map(|findings| findings.panels.clone()).collect();
    args.chart.iter().try_for_each(|chart| chart.draw(&panels))?;
    error.map_or(Ok(()), Err)
}

fn run_grants(args: StressArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let server = Server::new(home, &args.model, args.tokens);
    let extent = args.extent()?;
    let runtime = http::runtime()?;
    args.chart.iter().try_for_each(|chart| chart.draw(&[]))?;
    let bar = progress_of(output, 1, "grants");
    if bar.is_hidden() {
        output.note("grants ..");
    }
    let found = runtime.block_on(grants::run(&server, (&args.part, extent), &bar));
    bar.finish_and_clear();
    reported(args, extent, &found?, output)
}

fn run_audio(args: StressArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let clip = args.clip.as_deref().map_or_else(Clip::spoken, Clip::read)?;
    let server = Server::new(home, &args.model, args.tokens);
    let extent = args.extent()?;
    let runtime = http::runtime()?;
    let bar = progress_of(output, u64::from(args.streams), "audio");
    if bar.is_hidden() {
        output.note("audio ..");
    }
    let found = runtime.block_on(audio::run(&server, &clip, (args.streams, extent), &bar));
    bar.finish_and_clear();
    reported(args, extent, &found?, output)
}

impl StressArgs {
    /// Scenarios and paths have a bound of their own: each of their rounds takes seconds.
    fn extent(&self) -> Result<Extent, CliError> {
        let (usual, most) = if self.grants { (grants::ROUNDS, u32::MAX) } else { (ROUNDS, ROUNDS_MAX) };
        let rounds = self.rounds.unwrap_or(usual);
        if rounds > most {
            let (what, advice) = (format!("--rounds is at most {most} here"), String::new());
            return Err(CliError::Usage { what, advice });
        }
        Ok(Extent { seconds: self.seconds, rounds })
    }
}

fn run_oom(args: &StressArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let server = Server::new(home, &args.model, args.tokens);
    let extent = args.extent()?;
    let device = args.device.unwrap_or(Device::Cpu);
    let runtime = http::runtime()?;
    args.chart.iter().try_for_each(|chart| chart.draw(&[]))?;
    let bar = progress_of(output, 1, "oom");
    if bar.is_hidden() {
        output.note(&format!("out of memory on {} ..", device.name()));
    }
    let found = runtime.block_on(oom::run(&server, device, (&args.path, extent), &bar));
    bar.finish_and_clear();
    let mut report = found?;
    let broken = report.broken();
    let error = (!broken.is_empty()).then_some(CliError::Broken { promises: broken });
    report.error = error.as_ref().map(|error| json!({"code": error.code(), "message": error.to_string()}));
    output.answer(&report, |style| report.page(style))?;
    let panels = oom::panels(&report);
    args.chart.iter().try_for_each(|chart| chart.draw(&panels))?;
    error.map_or(Ok(()), Err)
}

/// What the scenarios before the error found is shown to people; a machine gets the error alone.
fn ended_early(args: &StressArgs, all: &[Findings], output: &Output, error: CliError) -> CliError {
    if !output.is_json() && !all.is_empty() {
        let extent = args.extent().unwrap_or(Extent { seconds: args.seconds, rounds: ROUNDS });
        let page = Report::new(args.model.clone(), extent, all).page(output.style());
        // The error is what matters now, whether this can be printed or not.
        let _ = output.line(&page);
    }
    error
}

/// Each once, in the order in which they were given.
fn wanted(args: &StressArgs) -> Vec<Scenario> {
    let given = if args.all { Scenario::value_variants() } else { &args.scenarios };
    let mut wanted = Vec::new();
    for &scenario in given {
        if !wanted.contains(&scenario) {
            wanted.push(scenario);
        }
    }
    wanted
}

async fn one(
    scenario: Scenario,
    server: &Server,
    extent: Extent,
    output: &Output,
) -> Result<Findings, CliError> {
    let bar = progress_of(output, 1, scenario.name());
    if bar.is_hidden() {
        output.note(&format!("{} ..", scenario.name()));
    }
    let found = stress::run(scenario, server, extent, bar.clone()).await;
    bar.finish_and_clear();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: StressArgs,
    }

    fn parse(words: &[&str]) -> Result<StressArgs, clap::Error> {
        Line::try_parse_from([&["stress"], words].concat()).map(|line| line.args)
    }

    #[test]
    fn scenarios_run_once_each_in_the_order_given() {
        let args = parse(&["flood", "crash-loop", "flood"]).unwrap();
        assert_eq!(wanted(&args), [Scenario::Flood, Scenario::CrashLoop]);
        assert_eq!(wanted(&parse(&["--all"]).unwrap()).len(), 6);
    }

    #[test]
    fn out_of_memory_has_a_device_and_no_scenario() {
        let args = parse(&["--oom", "--device", "wgpu", "--path", "host-memory"]).unwrap();
        assert_eq!((args.device, &args.path[..]), (Some(Device::Wgpu), &[Path::HostMemory][..]));
        for path in Path::value_variants() {
            assert_eq!(path.to_possible_value().unwrap().get_name(), path.name());
        }
    }

    #[test]
    fn grants_have_parts_and_more_rounds_than_scenarios() {
        let extent = |words: &[&str]| parse(words).unwrap().extent().map(|extent| extent.rounds).ok();
        assert_eq!(extent(&["--grants", "--part", "expiry"]), Some(10_000));
        assert_eq!(extent(&["--grants", "--rounds", "100000"]), Some(100_000));
        assert_eq!(extent(&["--all"]), Some(5));
        assert_eq!(
            (extent(&["--oom", "--rounds", "1000"]), extent(&["flood", "--rounds", "1001"])),
            (Some(1_000), None)
        );
    }

    #[test]
    fn what_can_not_be_meant_is_refused() {
        for wrong in [
            &[][..],
            &["everything"],
            &["--all", "flood"],
            &["--all", "--oom"],
            &["--oom", "flood"],
            &["--grants", "flood"],
            &["--grants", "--oom"],
            &["--audio", "--clip", "a.wav", "--grants"],
            &["--clip", "a.wav", "--all"],
            &["--all", "--part", "expiry"],
            &["--grants", "--part", "everything"],
            &["flood", "--device", "wgpu"],
            &["--oom", "--device", "tpu"],
            &["flood", "--rounds", "0"],
            &["flood", "--seconds", "0"],
            &["flood", "--seconds", "601"],
            &["flood", "--chart", "a.gif"],
            &["flood", "--model", "../m"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        let charts = parse(&["flood", "--chart", "a.svg", "--chart", "b.png"]).unwrap().chart;
        assert_eq!(charts.len(), 2);
    }

    #[test]
    fn every_scenario_has_the_name_of_the_command_line() {
        for scenario in Scenario::value_variants() {
            let possible = scenario.to_possible_value().unwrap();
            assert_eq!(possible.get_name(), scenario.name());
        }
    }
}
