//! `ringfence doctor`: what this machine has of what Ringfence can use.

use crate::clock;
use crate::doctor::{Answer, Finding, examine};
use crate::error::CliError;
use crate::home::Home;
use crate::operator::OperatorArgs;
use crate::output::{Output, Style};
use clap::Args;
use serde::Serialize;

/// Look at the kernel, devices, drivers, trust, packages and the server, and say what to do about what is missing
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence doctor
  ringfence doctor --json | jq '.findings[] | select(.answer != \"yes\")'

Answers: yes; absent (the server can do without it); no (the server needs it). Exit code 1 if one is no.
Nothing is changed and no model is loaded; packages are read whole and compared with what was signed, and each Vulkan
driver is asked for its devices inside the sandbox that its workers get. Run it as the user that the server runs as: what is closed to that user is
missing.")]
pub struct DoctorArgs {
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Serialize)]
struct Report {
    /// No answer is no.
    ready: bool,
    findings: Vec<Finding>,
}

/// Runs it.
///
/// # Errors
/// [`CliError::Unready`] where something is missing that the server needs.
pub fn run(args: &DoctorArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let findings = examine(home, &args.operator.config()?, clock::unix_seconds());
    let missing: Vec<String> = findings
        .iter()
        .filter(|finding| finding.answer == Answer::No)
        .map(|finding| format!("{} {}", finding.area, finding.name))
        .collect();
    let report = Report { ready: missing.is_empty(), findings };
    output.answer(&report, |style| page(&report.findings, style))?;
    if missing.is_empty() { Ok(()) } else { Err(CliError::Unready { missing }) }
}

fn page(findings: &[Finding], style: Style) -> String {
    let wide = findings.iter().map(|finding| finding.name.chars().count()).max().unwrap_or_default();
    let mut lines = Vec::new();
    let mut area = "";
    for finding in findings {
        if finding.area != area {
            area = finding.area;
            lines.extend([String::new(), style.bold(area)]);
        }
        let answer = match finding.answer {
            Answer::Yes => style.green("yes   "),
            Answer::Absent => style.dim("absent"),
            Answer::No => style.red("no    "),
        };
        lines.push(format!("  {answer}  {:wide$}  {}", finding.name, finding.found));
        let indent = " ".repeat(wide + 12);
        lines.extend(
            finding.advice.iter().map(|advice| format!("{indent}{}", style.dim(&format!("-> {advice}")))),
        );
    }
    lines.join("\n").trim_start().to_owned()
}
