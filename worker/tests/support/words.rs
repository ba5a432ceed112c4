//! Word errors between what was said and what was heard.

/// Small letters and no signs: how word errors are counted.
pub(crate) fn words(text: &str) -> Vec<String> {
    let plain = text.to_lowercase().replace("mr.", "mister").replace('-', " ");
    let letters: String = plain.chars().filter(|c| c.is_alphanumeric() || c.is_whitespace()).collect();
    letters.split_whitespace().map(str::to_owned).collect()
}

/// How many words have to be put in, left out or changed.
pub(crate) fn distance(said: &[String], heard: &[String]) -> usize {
    let mut row: Vec<usize> = (0..=heard.len()).collect();
    for (i, word) in said.iter().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in heard.iter().enumerate() {
            let changed = corner + usize::from(word != other);
            corner = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[heard.len()]
}
