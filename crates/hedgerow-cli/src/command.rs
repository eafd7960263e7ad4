//! The commands, one file per noun.

mod check;
mod device;
mod events;
mod explain;
mod policy;
mod site;
mod status;
mod token;
mod wait;

use std::process::ExitCode;

use crate::args::{Command, OperatorCommand};
use crate::error::CliError;
use crate::shell::Shell;

/// Runs one command. `Ok` may still carry an exit code that says something is wrong.
///
/// # Errors
///
/// [`CliError`] when it could not be done.
pub(crate) fn run(command: Command, shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    match command {
        Command::Token(command) => token::run(command, shell),
        Command::Site(command) => site::run(command, shell),
        Command::Device(command) => device::run(command, shell),
        Command::Policy(command) => policy::run(command, shell),
        Command::Explain {
            from,
            to,
            service,
            at,
        } => explain::run(
            &explain::Question {
                from,
                to,
                service,
                at,
            },
            shell,
        ),
        Command::Status { all } => status::run(all, shell),
        Command::Events {
            after,
            limit,
            kind,
            device,
            follow,
        } => events::run(
            events::Wish {
                after,
                limit,
                kinds: kind,
                device,
                follow,
            },
            shell,
        ),
        Command::Check { agent_state } => check::run(&agent_state, shell),
        Command::Operator(OperatorCommand::Renew) => renew(shell),
    }
}

/// Certificates of operators are made where the issuing key is: on the controller.
fn renew(shell: &mut Shell<'_>) -> Result<ExitCode, CliError> {
    let file = shell
        .config
        .map(|config| config.certificate.display().to_string());
    let file = file.unwrap_or_else(|| "the certificate in cli.toml".to_owned());
    let answer = serde_json::json!({
        "command": "hedgerow-control operator renew", "where": "controller", "certificate": file,
    });
    if shell.json {
        shell.print_json(&answer)?;
    } else {
        writeln!(
            shell.out,
            "On the controller, as root:\n\n    hedgerow-control operator renew\n\nThen copy its \
             operator/operator.pem over {file}.\nOn the controller itself nothing is to be copied."
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
