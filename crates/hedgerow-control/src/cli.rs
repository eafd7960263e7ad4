//! The command line.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use hedgerow_model::Fault;
use hedgerow_model::config::Origin;
use hedgerow_model::id::{OperatorName, TrustDomain};
use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::config::{CONFIG_DEFAULT, Config, DIR_DEFAULT, split_endpoint};
use crate::init::{self, Wish};
use crate::keys::Layout;
use crate::refusal::Refusal;
use crate::store::StoreError;
use crate::{backup, disk, operator, run};

/// The one thing taken from the environment.
pub(crate) const LOG_FILTER: &str = "HEDGEROW_LOG";

/// Longest passphrase, in bytes.
const PASSPHRASE_BYTES_MAX: u64 = 4096;

/// The controller of a Hedgerow fleet.
#[derive(Debug, Parser)]
#[command(name = "hedgerow-control", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new trust domain: root key, issuing certificate, role keys, the first operator.
    Init(InitArgs),
    /// Run the controller.
    Run(ConfigArgs),
    /// Write store and keys into one file. It holds secrets: keep it like them.
    Backup {
        /// The file to write; it must not exist.
        file: PathBuf,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Bring a backup back, in a new timeline.
    Restore {
        /// The file to read.
        file: PathBuf,
        /// The state directory to fill.
        #[arg(long, default_value = DIR_DEFAULT)]
        dir: PathBuf,
    },
    /// Revoke a device while the controller is down, and write the signed list that any device takes
    /// (`hedgerow-agent revocations import FILE`) and hands on to all others.
    Revoke {
        /// The device: name.site, name or id.
        device: String,
        /// Why, for the record.
        #[arg(long, default_value = "")]
        reason: String,
        /// Where to write the list, for a device to take.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// The operators' certificates.
    #[command(subcommand)]
    Operator(OperatorCommand),
    /// The issuing certificate.
    #[command(subcommand)]
    Issuer(IssuerCommand),
    /// The configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the effective values.
    Show {
        /// Say where each value comes from.
        #[arg(long)]
        origin: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

#[derive(Debug, Args)]
struct InitArgs {
    /// The namespace of every identity, e.g. plant.example.
    #[arg(long)]
    trust_domain: TrustDomain,
    /// How agents and operators reach this machine, host:port; the first is preferred.
    #[arg(long, required = true)]
    endpoint: Vec<String>,
    /// Where to listen; every address at the first endpoint's port unless given.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// The state directory to make.
    #[arg(long, default_value = DIR_DEFAULT)]
    dir: PathBuf,
    /// The first operator's name.
    #[arg(long, default_value = "admin")]
    operator: OperatorName,
    /// A file with the root key's passphrase, or - for standard input; made up unless given.
    #[arg(long)]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration; /etc/hedgerow/control.toml, or the one that init wrote, unless given.
    #[arg(long)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum OperatorCommand {
    /// Make a new certificate for an operator, on this machine.
    Renew {
        /// The operator.
        #[arg(long, default_value = "admin")]
        name: OperatorName,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

#[derive(Debug, Subcommand)]
enum IssuerCommand {
    /// Make a new issuing certificate with the root key; a running controller takes it over.
    Renew {
        /// The root key's file, brought back from where it was moved.
        #[arg(long)]
        root_key: PathBuf,
        /// A file with its passphrase, or - for standard input.
        #[arg(long)]
        passphrase_file: PathBuf,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

impl ConfigArgs {
    fn path(&self) -> PathBuf {
        let made = || Layout::new(Path::new(DIR_DEFAULT)).config();
        match &self.config {
            Some(path) => path.clone(),
            None if Path::new(CONFIG_DEFAULT).exists() => PathBuf::from(CONFIG_DEFAULT),
            None => made(),
        }
    }
}

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    // Everything written here is for the owner alone, the database's own files included.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody may listen any more; then there is nobody to tell.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(log_filter(LOG_FILTER))
        .with_ansi(false)
        .init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::from(error).context("cannot start")),
    };
    match runtime.block_on(execute(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// What the variable asks for, else what an operator would ask about.
fn log_filter(variable: &str) -> EnvFilter {
    let wanted = EnvFilter::builder().with_env_var(variable).try_from_env();
    wanted.unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    say_error(&format!("hedgerow-control: {error:#}"));
    ExitCode::from(fault(error).exit_code())
}

/// Who has to act: the first cause that knows.
fn fault(error: &anyhow::Error) -> Fault {
    for cause in error.chain() {
        if let Some(refusal) = cause.downcast_ref::<Refusal>() {
            return refusal.fault();
        }
        if let Some(store) = cause.downcast_ref::<StoreError>() {
            return store.fault();
        }
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            return fault_of_io(error);
        }
    }
    Fault::Operator
}

/// What the system refuses because of how it was set up is for the operator to mend.
fn fault_of_io(error: &std::io::Error) -> Fault {
    use std::io::ErrorKind as Kind;
    let operators = [
        Kind::AddrInUse,
        Kind::AddrNotAvailable,
        Kind::AlreadyExists,
        Kind::NotFound,
        Kind::PermissionDenied,
        Kind::ReadOnlyFilesystem,
        // The lock is held.
        Kind::WouldBlock,
    ];
    if operators.contains(&error.kind()) {
        Fault::Operator
    } else {
        Fault::Environment
    }
}

async fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init(args) => make(args).await,
        Command::Run(config) => run::run(&config.path()).await,
        Command::Backup { file, config } => {
            backup::backup(&config.path(), &file).await?;
            say(&format!(
                "wrote {}. It holds the controller's keys: keep it where only you can read it.",
                file.display()
            ))
        }
        Command::Restore { file, dir } => {
            let timeline = backup::restore(&file, &dir, Clock::start()).await?;
            say(&format!(
                "restored into {} as timeline {timeline}.\nStart it with: hedgerow-control run \
                 --config {}\nAgents hand up what they know that the backup does not.",
                dir.display(),
                Layout::new(&dir).config().display()
            ))
        }
        Command::Revoke {
            device,
            reason,
            out,
            config,
        } => {
            let clock = Clock::start();
            let version = operator::revoke(&config.path(), (&device, &reason), &out, clock).await?;
            say(&format!(
                "revoked {device}; list {version} is in {}.\nCarry it to any device of the fleet: \
                 hedgerow-agent revocations import {}",
                out.display(),
                out.display()
            ))
        }
        Command::Config(ConfigCommand::Show {
            origin,
            json,
            config,
        }) => show(&config.path(), origin, json),
        Command::Operator(OperatorCommand::Renew { name, config }) => {
            let path = operator::renew(&config.path(), &name, Clock::start()).await?;
            say(&format!("wrote {}", path.display()))
        }
        Command::Issuer(IssuerCommand::Renew {
            root_key,
            passphrase_file,
            config,
        }) => {
            let passphrase = passphrase(&passphrase_file)?;
            let clock = Clock::start();
            let version =
                operator::renew_issuer(&config.path(), &root_key, &passphrase, clock).await?;
            say(&format!(
                "trust manifest {version} is in the store; a running controller takes it over \
                 within a minute and tells the devices. The old issuing key signs on until it no longer covers a \
                 whole certificate"
            ))
        }
    }
}

fn show(path: &Path, with_origin: bool, json: bool) -> anyhow::Result<()> {
    let config = Config::load(path).map_err(anyhow::Error::msg)?;
    if json {
        return say(&serde_json::to_string(&config.origins)?);
    }
    let line = |o: &Origin| match with_origin {
        true => format!("{} = {}  # {}", o.key, o.value, o.origin),
        false => format!("{} = {}", o.key, o.value),
    };
    let lines: Vec<String> = config.origins.iter().map(line).collect();
    say(&lines.join("\n"))
}

async fn make(args: InitArgs) -> anyhow::Result<()> {
    let mut port = 7443;
    for (i, endpoint) in args.endpoint.iter().enumerate() {
        let (_, p) = split_endpoint(endpoint).map_err(anyhow::Error::msg)?;
        port = if i == 0 { p } else { port };
    }
    let wish = Wish {
        trust_domain: args.trust_domain,
        endpoints: args.endpoint,
        listen: args
            .listen
            .unwrap_or_else(|| SocketAddr::from(([0u16; 8], port))),
        dir: std::path::absolute(&args.dir)?,
        operator: args.operator,
        passphrase: args
            .passphrase_file
            .as_deref()
            .map(passphrase)
            .transpose()?,
    };
    let made = init::init(wish, Clock::start()).await?;
    let l = &made.layout;
    let mut text = format!(
        "Made a trust domain in {}.\n\nroot hash   {}\nroot key    {}  (encrypted; move it \
         offline, daily work does not need it)\noperator    {}\nstart       hedgerow-control run \
         --config {}",
        l.dir().display(),
        made.genesis,
        l.root_key().display(),
        l.operator("cli.toml").display(),
        l.config().display(),
    );
    if let Some(passphrase) = &made.passphrase {
        text.push_str(&format!(
            "\n\nThe root key's passphrase, shown this once:\n\n    {}\n",
            passphrase.as_str()
        ));
    }
    say(&text)
}

/// Reads a passphrase: the first line of a file, or of standard input.
fn passphrase(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    if path == Path::new("-") {
        std::io::stdin()
            .take(PASSPHRASE_BYTES_MAX)
            .read_to_string(&mut text)
            .context("cannot read the passphrase from standard input")?;
    } else {
        *text = disk::read_text(path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    let line = Zeroizing::new(text.lines().next().unwrap_or_default().to_owned());
    anyhow::ensure!(
        line.len() >= 12,
        "the passphrase takes at least 12 characters"
    );
    Ok(line)
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

fn say_error(text: &str) {
    // Without standard error there is nobody to tell.
    drop(writeln!(std::io::stderr(), "{text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_filter_the_log_is_quiet() {
        let filter = log_filter("HEDGEROW_TEST_UNSET").to_string();
        assert!(
            filter.contains("info") && filter.contains("sqlx=warn"),
            "{filter}"
        );
    }
}
