//! Every way to use what one may not, and the code that says which it was.

use super::ground::Ground;
use super::holder::{Granted, Holder, code_of};
use crate::error::CliError;
use crate::stress::promise::{Bound, Findings};
use serde_json::json;
use std::time::Duration;

/// How long a grant lives that is to expire, and how long it is then waited for.
const SHORT_MS: u64 = 50;
const SHORT_WAIT: Duration = Duration::from_millis(SHORT_MS + 50);
/// Where the characters begin that name the run of the server: after `rfg_`.
const RUN_AT: usize = 4;

const AS_IT_SHOULD: (Bound, &str) = (Bound::AtLeast(1.0), "");

pub(super) async fn play(ground: &Ground<'_>, findings: &mut Findings) -> Result<(), CliError> {
    let (mut holder, mut other, root) = (ground.holder(), ground.other(), ground.root());
    let live = holder.granted(&root, &[]).await?;
    let string = &live.string;
    judge(findings, "malformed", "capability_malformed", code_of(holder.read("rfg_x", "a.md").await)?);
    let forged = changed(string, string.len() - 1);
    judge(findings, "forged", "capability_unknown", code_of(holder.read(&forged, "a.md").await)?);
    let former = changed(string, RUN_AT);
    judge(
        findings,
        "of_a_former_run",
        "capability_of_another_run",
        code_of(holder.read(&former, "a.md").await)?,
    );
    judge(
        findings,
        "of_another_client",
        "capability_wrong_holder",
        code_of(other.read(string, "a.md").await)?,
    );
    let elsewhere = holder.read_for("stress-no-such-model", string, "a.md").await;
    judge(findings, "for_another_model", "capability_wrong_audience", code_of(elsewhere)?);
    judge(
        findings,
        "out_of_the_root",
        "grant_path_refused",
        code_of(holder.read(string, "../outside/secret").await)?,
    );
    narrowed(&mut holder, &live, findings).await?;
    let file = holder.granted(&root.join("a.md"), &[]).await?;
    judge(
        findings,
        "beside_a_granted_file",
        "grant_out_of_scope",
        code_of(holder.read(&file.string, "sub/b.md").await)?,
    );
    holder.revoke(file.number).await?;
    used_up(ground, &mut holder, findings).await?;
    ended(ground, &mut holder, findings).await?;
    holder.revoke(live.number).await?;
    judge(findings, "revoked", "grant_revoked", code_of(holder.read(string, "a.md").await)?);
    let why = "the machine's clock is left alone; the tests of the table hold it";
    findings.skip("clock_turned_back", AS_IT_SHOULD, why);
    Ok(())
}

async fn narrowed(holder: &mut Holder, live: &Granted, findings: &mut Findings) -> Result<(), CliError> {
    let narrow = holder.narrowed(&live.string, &[("path", json!("sub")), ("uses_max", json!(5))]).await?;
    let out = code_of(holder.read(&narrow.string, "../a.md").await)?;
    judge(findings, "out_of_a_narrowed_root", "grant_path_refused", out);
    let wider = holder.narrowed(&narrow.string, &[("uses_max", json!(6))]).await;
    judge(findings, "narrowed_to_more", "grant_wider", code_of(wider.map(|_| json!({})))?);
    holder.revoke(narrow.number).await?;
    judge(
        findings,
        "narrowed_and_revoked",
        "grant_revoked",
        code_of(holder.read(&narrow.string, "b.md").await)?,
    );
    Ok(())
}

async fn used_up(ground: &Ground<'_>, holder: &mut Holder, findings: &mut Findings) -> Result<(), CliError> {
    let once = holder.granted(&ground.root(), &[("uses_max", json!(1))]).await?;
    holder.read(&once.string, "a.md").await?;
    judge(findings, "replayed", "grant_used_up", code_of(holder.read(&once.string, "a.md").await)?);
    holder.revoke(once.number).await?;
    let bytes = super::ground::INSIDE.len();
    let few = holder.granted(&ground.root(), &[("bytes_max", json!(bytes))]).await?;
    holder.read(&few.string, "a.md").await?;
    judge(findings, "beyond_its_bytes", "grant_used_up", code_of(holder.read(&few.string, "a.md").await)?);
    holder.revoke(few.number).await.map(drop)
}

async fn ended(ground: &Ground<'_>, holder: &mut Holder, findings: &mut Findings) -> Result<(), CliError> {
    let short = holder.granted(&ground.root(), &[("lifetime_ms", json!(SHORT_MS))]).await?;
    tokio::time::sleep(SHORT_WAIT).await;
    judge(findings, "expired", "grant_expired", code_of(holder.read(&short.string, "a.md").await)?);
    Ok(())
}

/// Whether a use was refused with its own code.
fn judge(findings: &mut Findings, what: &'static str, expected: &str, got: String) {
    let note = if got == expected { got.clone() } else { format!("{got}, not {expected}") };
    findings.judge(what, Some(f64::from(u8::from(got == expected))), AS_IT_SHOULD, note);
}

/// The string with another character there, which is still one of its alphabet.
fn changed(string: &str, at: usize) -> String {
    // The last one has two bits that count for nothing and must be zero: A and Q differ in those that count.
    let flip = |(place, c): (usize, char)| match (place == at, c) {
        (true, 'A') => 'Q',
        (true, _) => 'A',
        (false, c) => c,
    };
    string.chars().enumerate().map(flip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_changed_in_one_place() {
        assert_eq!(changed("rfg_AbcQ", 4), "rfg_QbcQ");
        assert_eq!(changed("rfg_AbcQ", 7), "rfg_AbcA");
    }
}
