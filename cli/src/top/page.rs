//! The view as lines of a given width: columns that do not fit are left out by priority, and nothing wraps.

use super::view::{ClientRow, ModelRow, RefusalRow, Summary, View, WorkerRow};
use crate::output::bytes;
use ratatui::Frame;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};

/// Letters of a bar, without its ends.
const BAR: usize = 8;

/// Blanks between columns.
const GAP: usize = 2;

/// Longer names are cut.
const NAME_MAX: usize = 28;

/// How the live view is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Whether colours are wanted.
    pub colours: bool,
}

impl Look {
    fn of(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn heading(self) -> Style {
        if self.colours { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() }
    }
}

/// One section: a heading, and rows below it.
struct Section {
    columns: Vec<Column>,
    rows: usize,
    /// Said instead of rows.
    empty: &'static str,
}

struct Column {
    title: &'static str,
    /// Columns with the largest number are left out first.
    rank: u8,
    right: bool,
    cells: Vec<(String, Style)>,
}

/// Draws the whole screen, with `notice` in the last line if there is one.
pub fn draw(frame: &mut Frame<'_>, view: &View, notice: &str, look: Look) {
    let area = frame.area();
    let height = usize::from(area.height);
    let mut page = lines(view, usize::from(area.width), height.saturating_sub(1), look);
    page.resize(height.saturating_sub(1), Line::default());
    let foot = if notice.is_empty() {
        Line::from("q quits")
    } else {
        Line::styled(notice.to_owned(), look.of(Color::Red))
    };
    page.push(foot);
    page.truncate(height);
    frame.render_widget(Text::from(page), area);
}

/// The page as plain text, as wide and high as it needs.
pub fn plain(view: &View) -> String {
    let lines = lines(view, usize::MAX, usize::MAX, Look { colours: false });
    let text: Vec<String> = lines.iter().map(|line| line.to_string().trim_end().to_owned()).collect();
    text.join("\n")
}

/// At most `height` lines of at most `width` letters.
fn lines(view: &View, width: usize, height: usize, look: Look) -> Vec<Line<'static>> {
    let sections =
        [workers(&view.workers, look), models(&view.models), clients(view, look), refusals(view, look)];
    let wanted: Vec<usize> = sections.iter().map(|section| section.rows.max(1)).collect();
    let mut lines = vec![summary(&view.summary, look)];
    lines.extend(listening(view, look));
    let (rows, blanks) = heights(&wanted, height.saturating_sub(lines.len()));
    for (section, rows) in sections.iter().zip(rows) {
        if rows == 0 {
            continue;
        }
        if blanks {
            lines.push(Line::default());
        }
        section.draw(&mut lines, (width, rows), look);
    }
    lines.truncate(height);
    lines
}

/// Rows for each section below its heading, and whether a blank line above each fits. Where not all fit, the first
/// sections get a heading and a row, and what is left goes around one by one.
fn heights(wanted: &[usize], height: usize) -> (Vec<usize>, bool) {
    let all = wanted.iter().fold(0_usize, |sum, rows| sum.saturating_add(rows + 1));
    let blanks = all.saturating_add(wanted.len()) <= height;
    let mut given = vec![0; wanted.len()];
    let mut left = height;
    for rows in &mut given {
        if left < 2 {
            break;
        }
        *rows = 1;
        left -= 2;
    }
    while left > 0 {
        let before = left;
        for (rows, &wanted) in given.iter_mut().zip(wanted) {
            if *rows > 0 && *rows < wanted && left > 0 {
                *rows += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    (given, blanks)
}

impl Section {
    fn draw(&self, lines: &mut Vec<Line<'static>>, (width, height): (usize, usize), look: Look) {
        let shown = self.fitting(width);
        let heading = shown
            .iter()
            .map(|&(column, width)| Span::styled(column.padded(column.title, width), look.heading()));
        lines.push(spaced(heading));
        if self.rows == 0 {
            lines.push(Line::styled(self.empty, look.of(Color::DarkGray)));
            return;
        }
        // The last line says what is not there, unless it could show it.
        let rows = if self.rows > height { height - 1 } else { self.rows };
        for row in 0..rows {
            lines.push(spaced(shown.iter().map(|&(column, width)| {
                let (text, style) = &column.cells[row];
                Span::styled(column.padded(text, width), *style)
            })));
        }
        if rows < self.rows {
            lines.push(Line::styled(format!("+{} more", self.rows - rows), look.of(Color::DarkGray)));
        }
    }

    /// The columns that fit, with their widths; the one of the lowest rank always does, if need be cut.
    fn fitting(&self, width: usize) -> Vec<(&Column, usize)> {
        let mut shown: Vec<(&Column, usize)> =
            self.columns.iter().map(|column| (column, column.width())).collect();
        let sum = |shown: &[(&Column, usize)]| {
            shown.iter().map(|(_, width)| width + GAP).sum::<usize>().saturating_sub(GAP)
        };
        while shown.len() > 1 && sum(&shown) > width {
            let last = shown.iter().enumerate().max_by_key(|(_, (column, _))| column.rank);
            let last = last.map(|(index, _)| index).expect("there are at least two");
            shown.remove(last);
        }
        shown
    }
}

impl Column {
    fn new(title: &'static str, rank: u8, cells: Vec<String>) -> Self {
        let cells = cells.into_iter().map(|cell| (cell, Style::new())).collect();
        Self { title, rank, right: false, cells }
    }

    fn right(mut self) -> Self {
        self.right = true;
        self
    }

    fn styled(mut self, style: impl Fn(usize) -> Style) -> Self {
        self.cells.iter_mut().enumerate().for_each(|(row, cell)| cell.1 = style(row));
        self
    }

    fn width(&self) -> usize {
        let cells = self.cells.iter().map(|(text, _)| text.chars().count());
        cells.chain([self.title.len()]).max().unwrap_or(0)
    }

    fn padded(&self, text: &str, width: usize) -> String {
        if self.right { format!("{text:>width$}") } else { format!("{text:width$}") }
    }
}

fn spaced(spans: impl Iterator<Item = Span<'static>>) -> Line<'static> {
    let mut line = Vec::new();
    for span in spans {
        if !line.is_empty() {
            line.push(Span::raw(" ".repeat(GAP)));
        }
        line.push(span);
    }
    Line::from(line)
}

fn summary(summary: &Summary, look: Look) -> Line<'static> {
    let health = summary.health.clone().unwrap_or_else(|| "-".to_owned());
    let colour = if health == "ok" { Color::Green } else { Color::Red };
    let load = summary.load_1m.map_or("-".to_owned(), |load| format!("{load:.2}"));
    let cores = summary.cores.map_or("-".to_owned(), |cores| cores.to_string());
    let mut spans = vec![
        Span::raw("health "),
        Span::styled(health, look.of(colour)),
        Span::raw(format!("  load {load}/{cores}")),
    ];
    let size = |count: Option<u64>| count.map_or("-".to_owned(), bytes);
    for device in &summary.devices {
        let (promised, budget) = (size(device.promised_bytes), size(device.budget_bytes));
        spans.push(Span::raw(format!("  {} {promised} of {budget}", device.name)));
        if let (Some(held), Some(cores)) = (device.cores_held, device.cores) {
            spans.push(Span::raw(format!(", {held} of {cores} cores")));
        }
    }
    for card in &summary.cards {
        let (used, total, busy) = (size(card.used_bytes), size(card.total_bytes), count(card.busy_percent));
        spans.push(Span::raw(format!("  card {} {used} of {total}, {busy}%", count(card.index))));
    }
    Line::from(spans)
}

/// Nobody is to be listened to without its being seen.
fn listening(view: &View, look: Look) -> Option<Line<'static>> {
    let words = format!("LISTENING  {}", view.captures.join("; "));
    (!view.captures.is_empty()).then(|| Line::styled(words, look.of(Color::Red)))
}

fn workers(rows: &[WorkerRow], look: Look) -> Section {
    let cells = |cell: &dyn Fn(&WorkerRow) -> String| rows.iter().map(cell).collect::<Vec<_>>();
    let used = |row: &WorkerRow| ratio(row.used_bytes, row.lease_bytes);
    let columns = vec![
        Column::new("PID", 1, cells(&|row| count(row.pid))).right(),
        Column::new("WORKER OF", 0, cells(&|row| name(row.model.as_deref()))),
        Column::new("STATE", 2, cells(&|row| name(row.state.as_deref()))),
        Column::new("USED", 3, cells(&|row| bar(used(row)))).styled(|row| look.of(fill(used(&rows[row])))),
        Column::new("LEASE", 5, cells(&|row| size(row.lease_bytes))).right(),
        Column::new("PEAK", 6, cells(&|row| size(row.peak_bytes))).right(),
        Column::new("TIER", 7, cells(&|row| name(row.tier.as_deref()))),
        Column::new("JOBS", 4, cells(&|row| count(row.jobs))).right(),
    ];
    Section { columns, rows: rows.len(), empty: "no workers" }
}

fn models(rows: &[ModelRow]) -> Section {
    let cells = |cell: &dyn Fn(&ModelRow) -> String| rows.iter().map(cell).collect::<Vec<_>>();
    let columns = vec![
        Column::new("MODEL", 0, cells(&|row| name(row.name.as_deref()))),
        Column::new("STATE", 3, cells(&|row| name(row.state.as_deref()))),
        Column::new("QUEUED", 1, cells(&|row| count(row.queued))).right(),
        Column::new("RUNNING", 2, cells(&|row| count(row.running))).right(),
    ];
    Section { columns, rows: rows.len(), empty: "no models" }
}

fn clients(view: &View, look: Look) -> Section {
    let rows = view.clients.as_deref().unwrap_or_default();
    let cells = |cell: &dyn Fn(&ClientRow) -> String| rows.iter().map(cell).collect::<Vec<_>>();
    let columns = vec![
        Column::new("CLIENT", 0, cells(&|row| name(Some(&row.client)))),
        Column::new("WEIGHT", 5, cells(&|row| count(row.weight))).right(),
        Column::new("CLASS", 6, cells(&|row| name(row.class.as_deref()))),
        Column::new("WAITING", 2, cells(&|row| count(row.waiting))).right(),
        Column::new("RUNNING", 4, cells(&|row| count(row.running))).right(),
        Column::new("SHARE", 1, cells(&|row| bar(row.share)))
            .styled(|row| look.of(if is_short(&rows[row]) { Color::Yellow } else { Color::Reset })),
        Column::new("OF RIGHT", 3, cells(&|row| percent(row.entitled))).right(),
    ];
    let empty = if view.clients.is_some() { "no clients yet" } else { "-" };
    Section { columns, rows: rows.len(), empty }
}

fn refusals(view: &View, look: Look) -> Section {
    let rows = view.refusals.as_deref().unwrap_or_default();
    let cells = |cell: &dyn Fn(&RefusalRow) -> String| rows.iter().map(cell).collect::<Vec<_>>();
    let rate = |row: &RefusalRow| row.per_second.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
    let rises = |row: usize| rows[row].per_second.is_some_and(|rate| rate > 0.0);
    let columns = vec![
        Column::new("REFUSED BY", 0, cells(&|row| name(Some(&row.rule)))),
        Column::new("COUNT", 2, cells(&|row| row.count.to_string())).right(),
        Column::new("PER SECOND", 1, cells(&rate))
            .right()
            .styled(|row| look.of(if rises(row) { Color::Yellow } else { Color::Reset })),
    ];
    let empty = if view.refusals.is_some() { "nothing refused" } else { "-" };
    Section { columns, rows: rows.len(), empty }
}

/// Waits although it has had clearly less than its weight entitles it to.
fn is_short(row: &ClientRow) -> bool {
    let waits = row.waiting.is_some_and(|jobs| jobs > 0);
    waits && row.share.zip(row.entitled).is_some_and(|(share, entitled)| share < 0.9 * entitled)
}

fn fill(used: Option<f64>) -> Color {
    match used {
        Some(used) if used > 0.95 => Color::Red,
        Some(used) if used > 0.8 => Color::Yellow,
        Some(_) | None => Color::Reset,
    }
}

fn bar(part: Option<f64>) -> String {
    let Some(part) = part else { return "-".to_owned() };
    let full = (part.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    format!("[{}{}] {}", "#".repeat(full), ".".repeat(BAR - full), percent(Some(part)))
}

fn percent(part: Option<f64>) -> String {
    part.map_or("-".to_owned(), |part| format!("{:3.0}%", 100.0 * part))
}

fn ratio(part: Option<u64>, whole: Option<u64>) -> Option<f64> {
    let (part, whole) = part.zip(whole)?;
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn count(count: Option<u64>) -> String {
    count.map_or("-".to_owned(), |count| count.to_string())
}

fn size(count: Option<u64>) -> String {
    count.map_or("-".to_owned(), bytes)
}

fn name(name: Option<&str>) -> String {
    let name = name.unwrap_or("-");
    if name.chars().count() <= NAME_MAX {
        return name.to_owned();
    }
    let kept: String = name.chars().take(NAME_MAX - 2).collect();
    format!("{kept}..")
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::{after, sample};
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    fn screen(view: &View, (width, height): (u16, u16), look: Look) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view, "", look)).unwrap();
        terminal
    }

    /// The screen's lines without the blanks at their ends.
    fn drawn(view: &View, size: (u16, u16)) -> Vec<String> {
        let terminal = screen(view, size, Look { colours: false });
        let buffer = terminal.backend().buffer();
        let line = |y| (0..size.0).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..size.1).map(|y| line(y).trim_end().to_owned()).collect()
    }

    fn busy() -> View {
        after(&[sample(1, 500, 0), sample(2, 1_500, 3_000)])
    }

    const PAGE: &str = "\
health ok  load 1.25/2  cpu 512.0 MiB of 4.0 GiB

 PID  WORKER OF  STATE  USED                 LEASE       PEAK  TIER    JOBS
4242  minilm     ready  [##......]  25%  400.0 MiB  200.0 MiB  kernel     2

MODEL   STATE  QUEUED  RUNNING
minilm  ready       9        2

CLIENT  WEIGHT  CLASS        WAITING  RUNNING  SHARE            OF RIGHT
heavy        3  interactive        5        1  [######..]  75%       75%
light        1  interactive        4        1  [##......]  25%       25%
idle         5  interactive        0        0  [........]   0%         -

REFUSED BY         COUNT  PER SECOND
queue_full_client     80        40.0
rate_jobs              6         3.0";

    #[test]
    fn an_ordinary_terminal_shows_everything() {
        let mut expected: Vec<&str> = PAGE.lines().collect();
        expected.resize(23, "");
        expected.push("q quits");
        assert_eq!(drawn(&busy(), (80, 24)), expected);
    }

    #[test]
    fn a_large_terminal_shows_the_same_and_leaves_the_rest_empty() {
        let found = drawn(&busy(), (120, 40));
        let mut expected: Vec<&str> = PAGE.lines().collect();
        expected.resize(39, "");
        expected.push("q quits");
        assert_eq!(found, expected);
    }

    #[test]
    fn the_plain_page_is_the_same_without_the_keys() {
        assert_eq!(plain(&busy()), PAGE);
    }

    #[test]
    fn a_tiny_terminal_keeps_what_matters_most() {
        let expected = ["health ok  load 1.25", " PID  WORKER OF", "4242  minilm", "", "q quits"];
        assert_eq!(drawn(&busy(), (20, 5)), expected);
    }

    #[test]
    fn no_size_and_no_server_makes_it_panic_or_wrap() {
        let empty = View::default();
        for view in [&busy(), &empty] {
            for width in 1..100 {
                for height in 1..30 {
                    let found = drawn(view, (width, height));
                    let quits = found.last().unwrap();
                    assert!("q quits".starts_with(quits.as_str()), "{width}x{height}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn rows_that_do_not_fit_are_counted() {
        let mut many = sample(1, 0, 0);
        let worker = many.status["workers"][0].clone();
        many.status["workers"] = json!(vec![worker; 50]);
        let found = drawn(&after(&[many]), (80, 24));
        let more = found.iter().find(|line| line.starts_with('+')).expect("not all workers fit");
        let shown = found.iter().filter(|line| line.starts_with("4242")).count();
        assert_eq!(more, &format!("+{} more", 50 - shown));
        assert!(found.iter().any(|line| line.starts_with("REFUSED BY")), "every section has its place");
    }

    #[test]
    fn what_the_server_does_not_say_is_a_dash() {
        let mut old = sample(1, 0, 0);
        old.usage = None;
        let page = plain(&after(&[old]));
        assert!(page.contains("OF RIGHT\n-\n") && page.ends_with("PER SECOND\n-"), "{page}");
    }

    #[test]
    fn colours_are_there_only_where_they_are_wanted() {
        for colours in [false, true] {
            let terminal = screen(&busy(), (80, 24), Look { colours });
            let content = &terminal.backend().buffer().content;
            let plain = content.iter().all(|cell| cell.fg == Color::Reset && cell.modifier.is_empty());
            assert_eq!(plain, !colours);
        }
    }

    #[test]
    fn whoever_is_listened_to_is_seen() {
        let captures = vec!["running pulse for notes to whisper".to_owned()];
        let page = plain(&View { captures, ..View::default() });
        assert!(page.contains("LISTENING  running pulse for notes to whisper"), "{page}");
        assert!(!plain(&View::default()).contains("LISTENING"));
    }

    #[test]
    fn a_notice_takes_the_last_line() {
        let mut terminal = Terminal::new(TestBackend::new(20, 3)).unwrap();
        let look = Look { colours: false };
        terminal.draw(|frame| draw(frame, &busy(), "no server answers", look)).unwrap();
        let buffer = terminal.backend().buffer();
        let last: String = (0..20).map(|x| buffer[(x, 2)].symbol()).collect();
        assert_eq!(last.trim_end(), "no server answers");
    }
}
