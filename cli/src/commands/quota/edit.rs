//! Values set in a text, which keeps its comments and its order.

use crate::error::CliError;
use toml_edit::{DocumentMut, Item, Key, Table, TableLike, Value};

/// `KEY=VALUE`, or `KEY=` for the default.
#[derive(Clone, Debug)]
pub(crate) struct Assignment {
    sections: Vec<String>,
    key: String,
    value: Option<Value>,
}

impl Assignment {
    /// From the command line. What is no value of TOML is taken for a text, so that words need no quotes.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (path, value) = text.split_once('=').ok_or("give KEY=VALUE, as in queues.total=4096")?;
        let parts = Key::parse(path)
            .map_err(|error| format!("{path} is no key: {}", last_line(&error.to_string())))?;
        let mut sections: Vec<String> = parts.iter().map(|part| part.get().to_owned()).collect();
        let key = sections.pop().filter(|_| !sections.is_empty());
        let key = key.ok_or_else(|| format!("{path} names no section, as in queues.total"))?;
        let value = value.trim();
        let parsed = || value.parse().unwrap_or_else(|_| Value::from(value));
        Ok(Self { sections, key, value: (!value.is_empty()).then(parsed) })
    }
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().next_back().unwrap_or("")
}

/// The text with these values.
///
/// # Errors
/// [`CliError::Failed`] where the text is no TOML, or has a value where a section is meant.
pub(crate) fn edit(text: &str, assignments: &[Assignment]) -> Result<String, CliError> {
    let failed = |reason: String| CliError::Failed {
        subject: "quotas.toml".to_owned(),
        code: "quota_invalid",
        source: reason.into(),
        advice: "correct the file, then: ringfence quota apply FILE".to_owned(),
    };
    let document: DocumentMut = text.parse().map_err(|error| failed(format!("{error}")))?;
    // The first section would go before the comments that are all there is.
    let (above, mut document) = match document.is_empty() {
        true => (text, DocumentMut::new()),
        false => ("", document),
    };
    for assignment in assignments {
        assign(document.as_table_mut(), assignment).map_err(failed)?;
    }
    let edited = document.to_string();
    let gap = if above.is_empty() || edited.is_empty() { "" } else { "\n" };
    Ok(format!("{above}{gap}{edited}"))
}

fn assign(root: &mut Table, assignment: &Assignment) -> Result<(), String> {
    let mut table: &mut dyn TableLike = root;
    for name in &assignment.sections {
        if assignment.value.is_none() && !table.contains_key(name) {
            return Ok(());
        }
        let item = table.entry(name).or_insert_with(section);
        table = item.as_table_like_mut().ok_or_else(|| format!("{name} is no section"))?;
    }
    match (&assignment.value, table.get_mut(&assignment.key)) {
        (None, _) => drop(table.remove(&assignment.key)),
        (Some(value), Some(Item::Value(old))) => {
            let mut value = value.clone();
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        (Some(value), Some(_) | None) => drop(table.insert(&assignment.key, Item::Value(value.clone()))),
    }
    Ok(())
}

/// A section whose heading is only written where it has values.
fn section() -> Item {
    let mut table = Table::new();
    table.set_implicit(true);
    Item::Table(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_scheduler::quotas::{Quotas, documented};

    fn check(text: &str, assignments: &[&str], expected: &str) {
        let parsed: Vec<Assignment> =
            assignments.iter().map(|text| Assignment::parse(text).unwrap()).collect();
        assert_eq!(edit(text, &parsed).unwrap(), expected, "{assignments:?}");
    }

    #[test]
    fn a_value_is_set_and_comments_stay() {
        let text = "# mine\n[queues]\ntotal = 5 # few\n\n# last\n";
        check(text, &["queues.total=7"], "# mine\n[queues]\ntotal = 7 # few\n\n# last\n");
        check(
            text,
            &["queues.per_client=2"],
            "# mine\n[queues]\ntotal = 5 # few\nper_client = 2\n\n# last\n",
        );
        check(text, &["queues.total="], "# mine\n[queues]\n\n# last\n");
        check(text, &["queues.order="], text);
        check(text, &["models.a.workers="], text);
        check(
            "[queues]\ntotal = 5\n",
            &["clients.notes.class=batch"],
            "[queues]\ntotal = 5\n\n[clients.notes]\nclass = \"batch\"\n",
        );
        check("", &["clients.\"uid:7\".models=[\"a\"]"], "[clients.\"uid:7\"]\nmodels = [\"a\"]\n");
        check("queues = { total = 5 }\n", &["queues.total=6"], "queues = { total = 6 }\n");
    }

    #[test]
    fn the_documented_file_keeps_its_documentation_above_the_values() {
        let assignment = Assignment::parse("queues.total=7").unwrap();
        let text = edit(&documented(), &[assignment]).unwrap();
        assert_eq!(text, format!("{}\n[queues]\ntotal = 7\n", documented()));
        assert_eq!(Quotas::parse(&text).unwrap().queues.total, 7);
    }

    #[test]
    fn what_is_no_assignment_is_refused() {
        for wrong in ["queues.total", "total=5", "=5", "a..b=5", "a b.c=5"] {
            assert!(Assignment::parse(wrong).is_err(), "{wrong}");
        }
        let assignment = Assignment::parse("queues.total.more=5").unwrap();
        assert!(edit("[queues]\ntotal = 5\n", &[assignment]).is_err());
    }
}
