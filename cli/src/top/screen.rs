//! The terminal while the live view runs: raw, on its second screen, and always given back as it was.

use super::page::{self, Look};
use super::sample::{Sample, Sampler};
use super::view::{View, Window, view};
use crate::error::CliError;
use crate::http;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How often we look for keys and news.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Shows the view until somebody quits.
///
/// # Errors
/// [`CliError::Failed`] where the terminal can't be used, and the sampler's error if the first sample fails.
pub fn run(mut sampler: Sampler, every: Duration, look: Look) -> Result<(), CliError> {
    // Before the screen is taken, so that without a server there is an error and no flicker.
    let runtime = http::runtime()?;
    let first = runtime.block_on(sampler.take())?;
    drop(runtime);
    let news = Arc::new(News::default());
    let asking = thread::spawn({
        let news = Arc::clone(&news);
        move || ask(sampler, every, &news)
    });
    let mut terminal = Screen::take()?;
    let mut shown = Shown::default();
    shown.take(Ok(first));
    show(&mut terminal.0, &mut shown, (&news, &asking), look)
}

/// What the thread that asks has for the one that draws.
#[derive(Default)]
struct News {
    latest: Mutex<Option<Result<Sample, CliError>>>,
    /// A signal came that ends us.
    ended: AtomicBool,
}

impl News {
    fn put(&self, sample: Result<Sample, CliError>) {
        *self.latest.lock().expect("no thread panics with this lock") = Some(sample);
    }

    fn take(&self) -> Option<Result<Sample, CliError>> {
        self.latest.lock().expect("no thread panics with this lock").take()
    }
}

/// A thread of its own, so that a server that is slow to answer does not make the keys slow. It ends with the process.
fn ask(mut sampler: Sampler, every: Duration, news: &Arc<News>) -> Result<(), CliError> {
    http::runtime()?.block_on(async {
        for kind in [SignalKind::terminate(), SignalKind::hangup()] {
            let mut signal = signal(kind).map_err(|source| CliError::io("signals", source))?;
            let news = Arc::clone(news);
            tokio::spawn(async move {
                signal.recv().await;
                news.ended.store(true, Ordering::Relaxed);
            });
        }
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            news.put(sampler.take().await);
        }
    })
}

/// What is on the screen.
#[derive(Default)]
struct Shown {
    window: Window,
    view: View,
    notice: String,
}

impl Shown {
    /// After an error the last view stays, with the error below it: the server may come back.
    fn take(&mut self, news: Result<Sample, CliError>) {
        match news {
            Ok(sample) => {
                self.window.remember(&sample);
                self.view = view(&sample, &self.window);
                self.notice.clear();
            }
            Err(error) => self.notice = error.to_string(),
        }
    }
}

fn show(
    terminal: &mut DefaultTerminal,
    shown: &mut Shown,
    (news, asking): (&News, &JoinHandle<Result<(), CliError>>),
    look: Look,
) -> Result<(), CliError> {
    let io = |source| CliError::io("terminal", source);
    while !news.ended.load(Ordering::Relaxed) {
        if let Some(news) = news.take() {
            shown.take(news);
        }
        if asking.is_finished() {
            return Err(stopped());
        }
        terminal.draw(|frame| page::draw(frame, &shown.view, &shown.notice, look)).map_err(io)?;
        if event::poll(LOOK_EVERY).map_err(io)? && quits(&event::read().map_err(io)?) {
            break;
        }
    }
    Ok(())
}

/// The thread that asks has ended, which it does after a panic or where the system gives it no event loop.
fn stopped() -> CliError {
    CliError::Failed {
        subject: "top".to_owned(),
        code: "asking_stopped",
        source: "nothing is asked any more".into(),
        advice: "start it again".to_owned(),
    }
}

fn quits(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// The terminal while it is ours. The library's panic hook gives it back as well.
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> Result<Self, CliError> {
        ratatui::try_init().map(Self).map_err(|source| {
            ratatui::restore();
            CliError::io("terminal", source)
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    #[test]
    fn q_escape_and_ctrl_c_quit_and_nothing_else_does() {
        let check = |code, modifiers, expected| {
            assert_eq!(quits(&Event::Key(KeyEvent::new(code, modifiers))), expected, "{code:?}");
        };
        check(KeyCode::Char('q'), KeyModifiers::NONE, true);
        check(KeyCode::Esc, KeyModifiers::NONE, true);
        check(KeyCode::Char('c'), KeyModifiers::CONTROL, true);
        check(KeyCode::Char('c'), KeyModifiers::NONE, false);
        check(KeyCode::Enter, KeyModifiers::NONE, false);
        assert!(!quits(&Event::Resize(20, 5)));
    }

    #[test]
    fn an_error_stays_below_the_last_view_until_there_is_news() {
        let sample = super::super::view::tests::sample(1, 0, 0);
        let mut shown = Shown::default();
        shown.take(Ok(sample.clone()));
        let gone =
            || CliError::Unreachable { address: "a".to_owned(), source: std::io::ErrorKind::NotFound.into() };
        shown.take(Err(gone()));
        assert_eq!(shown.view.workers.len(), 1);
        assert!(shown.notice.contains("no server answers"));
        shown.take(Ok(sample));
        assert!(shown.notice.is_empty());
    }
}
