//! `ringfence top`: workers, models, clients and refusals, live.

use crate::error::CliError;
use crate::home::Home;
use crate::http::{self, Address};
use crate::output::Output;
use crate::top::page::{self, Look};
use crate::top::sample::Sampler;
use crate::top::screen;
use crate::top::view::{View, Window, view};
use clap::Args;
use std::io::{self, IsTerminal};
use std::time::Duration;

/// Watch workers, models, clients and refusals
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ringfence top
  ringfence top --interval 5
  ringfence top --once
  ringfence top --once --json | jq '.clients[].share'

SHARE is a client's part of all device time of the last 10 seconds, OF RIGHT what its weight comes to among the
clients that are active. What the server could not tell is shown as `-`. q, Esc and ctrl-c quit.
--once looks twice, an interval apart, as shares and rates need two looks.")]
pub struct TopArgs {
    /// Print one plain page and end
    #[arg(long)]
    once: bool,
    /// Seconds between two looks at the server: 0.2 to 60
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
}

/// Runs it.
///
/// # Errors
/// [`CliError::Usage`] where standard output is no terminal and `--once` is missing, and those of [`Sampler`] and
/// [`screen::run`].
pub fn run(args: TopArgs, home: &Home, output: &Output) -> Result<(), CliError> {
    let sampler = Sampler::new(Address::Unix(home.admin_socket()));
    if args.once {
        let view = http::runtime()?.block_on(look_twice(sampler, args.interval))?;
        return output.answer(&view, |_| page::plain(&view));
    }
    let why = if output.is_json() {
        "--json is for one page"
    } else if io::stdout().is_terminal() {
        return screen::run(sampler, args.interval, Look { colours: output.style().has_colours() });
    } else {
        "standard output is no terminal"
    };
    Err(CliError::Usage { what: why.to_owned(), advice: "print one page: ringfence top --once".to_owned() })
}

async fn look_twice(mut sampler: Sampler, apart: Duration) -> Result<View, CliError> {
    let mut window = Window::default();
    window.remember(&sampler.take().await?);
    tokio::time::sleep(apart).await;
    let sample = sampler.take().await?;
    window.remember(&sample);
    Ok(view(&sample, &window))
}

fn interval(text: &str) -> Result<Duration, &'static str> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.2..=60.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) | Err(_) => Err("give 0.2 to 60 seconds"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_neither_a_flood_nor_a_hang() {
        assert_eq!(interval("0.2"), Ok(Duration::from_millis(200)));
        assert_eq!(interval("60"), Ok(Duration::from_secs(60)));
        for wrong in ["", "0", "0.1", "61", "-1", "nan", "inf", "1s"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
