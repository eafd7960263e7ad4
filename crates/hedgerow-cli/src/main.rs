//! `hedgerow`: what an operator says to a controller, and what it answers.
//!
//! ```text
//!  arguments ─▶ command ─▶ Request ─▶ Api (HTTPS, operator certificate) ─▶ JSON
//!                                                                           │
//!                     exit code, text or --json, remedy on standard error ◀─┘
//! ```
//!
//! # Invariants
//!
//! - Standard output holds the answer and nothing else; notes, progress and errors go to standard error.
//! - A command that changed something says what is not yet true.
//! - A secret is never an argument of a program.
//! - A closed pipe ends the program quietly.
//!
//! # Not here
//!
//! Policy semantics and identity: the controller decides, this tool shows.
#![forbid(unsafe_code)]

mod api;
mod args;
mod command;
mod config;
mod error;
mod http;
mod local;
mod render;
mod shell;
mod table;
mod time;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, Colour};
use crate::error::CliError;
use crate::shell::{Shell, Style, System};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(said) => {
            // Nobody is left to tell when the pipe is closed.
            drop(said.print());
            return ExitCode::from(u8::try_from(said.exit_code()).unwrap_or(2));
        }
    };
    // Line by line, so that notes on standard error stand where they belong.
    let mut out = io::stdout().lock();
    let mut err = io::stderr();
    let style = Style::new(colour(args.color, io::stdout().is_terminal()));
    let (json, mut system) = (args.json, System::new());
    let done = run(args, &mut system, style, &mut out, &mut err);
    let done = done.and_then(|code| out.flush().map(|()| code).map_err(CliError::from));
    match done {
        Ok(code) => code,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            // The exit code still tells when the message cannot be written.
            drop(error.report(json, &mut err));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(
    args: Args,
    system: &mut System,
    style: Style,
    out: &mut dyn io::Write,
    err: &mut dyn io::Write,
) -> Result<ExitCode, CliError> {
    let found = config::find(args.config.as_deref());
    let connected = found.and_then(|config| {
        let api = http::Http::connect(&config, args.timeout.0)?;
        Ok((config, api))
    });
    let (config, mut api): (_, Box<dyn api::Api>) = match connected {
        Ok((config, api)) => (Some(config), Box::new(api)),
        Err(error) => (None, Box::new(api::Unconnected::new(error))),
    };
    let mut shell = Shell {
        api: &mut *api,
        out,
        err,
        style,
        json: args.json,
        system,
        config: config.as_ref(),
    };
    command::run(args.command, &mut shell)
}

fn colour(wish: Colour, terminal: bool) -> bool {
    match wish {
        Colour::Always => true,
        Colour::Never => false,
        Colour::Auto => terminal && !System::no_color(),
    }
}
