//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use hedgerow_model::id::{DeviceName, Labels, SiteName};

use crate::time::Span;

/// Operate a Hedgerow controller: tokens, devices, policy, and what stands in force where
#[derive(Debug, Parser)]
#[command(
    name = "hedgerow",
    version,
    max_term_width = 100,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  hedgerow site create plant-1 --tz Europe/Paris
  hedgerow token create --site plant-1 --labels role=sensor --ttl 1h
  hedgerow policy plan plant.yaml
  hedgerow policy apply plant.yaml --wait 30s
  hedgerow explain camera.plant-1 nvr.plant-1 rtsp
  hedgerow device quarantine camera.plant-1 --reason \"talks to strangers\"

Exit codes: 0 done; 1 refused, or something is wrong (a failed test, a finding); 2 usage;
3 the controller misbehaved or is not the right one; 4 it cannot be reached, or time ran out;
70 a bug here. Every command takes --json; docs/reference/cli-json.md has the schema."
)]
pub(crate) struct Args {
    /// Which controller, and who you are [default: ~/.config/hedgerow/cli.toml, else the
    /// controller's own /var/lib/hedgerow/control/operator/cli.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Print one JSON document; errors are JSON on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Colours: on a terminal and without NO_COLOR, always, or never
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide = true
    )]
    pub(crate) color: Colour,

    /// How long one request may take
    #[arg(
        long,
        global = true,
        value_name = "SPAN",
        default_value = "2m",
        hide = true
    )]
    pub(crate) timeout: Span,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colour {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create, list and revoke enrollment tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Create and list sites
    #[command(subcommand)]
    Site(SiteCommand),
    /// Show, label, contain, approve and remove devices
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Check, plan, apply and look back on policy
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Say whether a flow passes, and which rule decides at each end
    ///
    /// The answer comes from the policy evaluator, the same that the tests of the policy use. It says what
    /// the policy means, not what a device has verified; `hedgerow status` says that.
    #[command(after_help = "\
Examples:
  hedgerow explain camera.plant-1 nvr.plant-1 rtsp
  hedgerow explain ops-laptop camera https --at 2026-03-30T07:59+02:00
  hedgerow explain sensor-1 collector tcp/8883 --json")]
    Explain {
        /// Who begins: a device's name, name.site or id
        from: String,
        /// Who answers: a device, an address, `internet` or `controller`
        to: String,
        /// A service of the policy, or tcp/502, udp/514, ping
        service: String,
        /// When, with zone, e.g. 2026-03-30T07:59+02:00 [default: now]
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
    },
    /// Show the revision in force and which devices have not verified it
    Status {
        /// Show every device, not only those that are behind or need a decision
        #[arg(long)]
        all: bool,
    },
    /// Show what happened
    #[command(after_help = "\
Examples:
  hedgerow events --limit 20
  hedgerow events --kind address_spoofed --follow
  hedgerow events --device camera.plant-1 --json")]
    Events {
        /// Only events after this number
        #[arg(long, value_name = "NUMBER")]
        after: Option<u64>,
        /// At most this many, the newest
        #[arg(long, default_value_t = 50)]
        limit: u64,
        /// Only this kind; may be given several times
        #[arg(long, value_name = "KIND")]
        kind: Vec<String>,
        /// Only events of or about this device
        #[arg(long, value_name = "DEVICE")]
        device: Option<String>,
        /// Go on showing new events until interrupted; one JSON document per line with --json
        #[arg(long, short)]
        follow: bool,
    },
    /// Find out what is wrong, and how to mend it
    ///
    /// On a device it runs the agent's own checks, foreign firewalls included. On an operator's machine it asks
    /// the controller and looks at the fleet.
    Check {
        /// Where a device keeps its agent's state
        #[arg(
            long,
            value_name = "DIRECTORY",
            default_value = "/var/lib/hedgerow/agent",
            hide = true
        )]
        agent_state: PathBuf,
    },
    /// About the operator's own certificate
    #[command(subcommand)]
    Operator(OperatorCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a token and print the line to paste on the device
    ///
    /// Standard output holds that line and nothing else. The token is shown this once; the controller keeps
    /// only the public half.
    #[command(after_help = "\
Examples:
  hedgerow token create --site plant-1 --labels role=sensor --ttl 1h
  hedgerow token create --site plant-1 --name camera-7 --labels role=camera,zone=hall-3
  hedgerow token create --site plant-1 --labels role=sensor --count 200 --approve
  hedgerow token create --site plant-1 --labels role=plc | ssh root@plc-gateway sh")]
    Create {
        /// The site that the device enrolls into
        #[arg(long, value_name = "SITE")]
        site: SiteName,
        /// The labels it gets, key=value,key=value
        #[arg(
            long,
            value_name = "LABELS",
            default_value = "",
            hide_default_value = true
        )]
        labels: Labels,
        /// How long the token can be used, 1m to 90d
        #[arg(long, value_name = "SPAN", default_value = "1h")]
        ttl: Span,
        /// The name it gets; for a single use
        #[arg(long, value_name = "NAME")]
        name: Option<DeviceName>,
        /// How many devices may use it
        #[arg(long, value_name = "N", default_value_t = 1)]
        count: u64,
        /// Each device waits for `hedgerow device approve`
        #[arg(long)]
        approve: bool,
    },
    /// List tokens
    List,
    /// End a token; devices that used it stay
    Revoke {
        /// Its number, as shown by `hedgerow token list`
        token: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SiteCommand {
    /// Create a site
    #[command(after_help = "Example:\n  hedgerow site create plant-1 --tz Europe/Paris")]
    Create {
        /// Its name: a-z, 0-9 and -
        name: SiteName,
        /// Its IANA time zone; schedules follow it
        #[arg(long, value_name = "ZONE", default_value = "UTC")]
        tz: String,
    },
    /// List sites
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// List devices, and those that wait for approval
    List {
        /// Only this site
        #[arg(long, value_name = "SITE")]
        site: Option<SiteName>,
        /// Only devices with all of these labels
        #[arg(
            long,
            value_name = "LABELS",
            default_value = "",
            hide_default_value = true
        )]
        labels: Labels,
        /// Only those that wait for approval
        #[arg(long, conflicts_with_all = ["site", "labels"])]
        pending: bool,
    },
    /// Show one device
    Show {
        /// Its name, name.site or id
        device: String,
    },
    /// Change labels; those not named stay
    ///
    /// Its peers learn the new labels at once; its old ticket is refused from then on.
    #[command(after_help = "\
Examples:
  hedgerow device label camera-7 zone=hall-4
  hedgerow device label camera-7 role=camera zone-       # zone- takes the label away
  hedgerow device label camera-7 --replace role=camera   # no others")]
    Label {
        /// Its name, name.site or id
        device: String,
        /// key=value sets, key- takes away
        #[arg(required = true, value_name = "LABEL")]
        changes: Vec<String>,
        /// Take away all labels not named
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Cut a device off from everything but what the policy's quarantine state allows
    ///
    /// Its own kernel and all its peers' refuse its packets, established sessions included. Undo it with
    /// `hedgerow device release`.
    Quarantine {
        /// Its name, name.site or id
        device: String,
        /// Why; for the audit log and the events
        #[arg(
            long,
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true
        )]
        reason: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Return a device to normal service
    Release {
        /// Its name, name.site or id
        device: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Have a connected device connect again
    Reconnect {
        /// Its name, name.site or id
        device: String,
    },
    /// Have a connected device make new tunnel keys at once
    RotateKeys {
        /// Its name, name.site or id
        device: String,
    },
    /// Stop trusting a device for good; it must enroll anew
    Revoke {
        /// Its name, name.site or id
        device: String,
        /// Why; for the revocation list, at most 120 bytes
        #[arg(
            long,
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true
        )]
        reason: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let a waiting device in, after its fingerprint was compared
    ///
    /// `hedgerow-agent fingerprint` on the device must show what `hedgerow device list` shows here.
    Approve {
        /// Its fingerprint or number, as shown by `hedgerow device list`
        device: String,
        /// Its site, when it came without a token
        #[arg(long, value_name = "SITE")]
        site: Option<SiteName>,
        /// Its labels, in place of the token's
        #[arg(long, value_name = "LABELS")]
        labels: Option<Labels>,
        /// Its name, in place of its own wish
        #[arg(long, value_name = "NAME")]
        name: Option<DeviceName>,
    },
    /// Turn a waiting device away
    Reject {
        /// Its fingerprint or number, as shown by `hedgerow device list`
        device: String,
    },
    /// Take a device out of the fleet; its name becomes free
    Remove {
        /// Its name, name.site or id
        device: String,
    },
}

/// How long to wait until kernels have verified a change.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Wait {
    /// Wait until every connected device has verified the change; 0s does not wait
    #[arg(long, value_name = "SPAN", default_value = "10s")]
    pub(crate) wait: Span,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Find every mistake in a policy file
    Check {
        /// The file; - is standard input
        file: String,
    },
    /// Run the tests and invariants in a policy file
    Test {
        /// The file; - is standard input
        file: String,
    },
    /// Show who would gain and lose what
    Plan {
        /// The file; - is standard input
        file: String,
    },
    /// Put a policy file into force
    ///
    /// Refused with any error or failed test; then the running revision stays. Applied does not mean in force
    /// everywhere: with --wait this says which devices have not verified it.
    #[command(after_help = "\
Examples:
  hedgerow policy apply plant.yaml
  hedgerow policy apply plant.yaml --wait 30s --note \"camera admin for the night shift\"")]
    Apply {
        /// The file; - is standard input
        file: String,
        /// Why; for the history
        #[arg(
            long,
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true
        )]
        note: String,
        /// You have seen that devices lose a large part of their rules
        #[arg(long)]
        confirm: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Print the policy file in force, or that of a revision
    Show {
        /// Which, e.g. 1.42
        #[arg(long, value_name = "REVISION")]
        revision: Option<String>,
    },
    /// List revisions, newest first
    History {
        /// At most this many
        #[arg(long, default_value_t = 20)]
        limit: u64,
    },
    /// Put an earlier revision into force again, as a new revision
    Rollback {
        /// Which [default: the one before]
        #[arg(long, value_name = "REVISION")]
        to: Option<String>,
        /// You have seen that devices lose a large part of their rules
        #[arg(long)]
        confirm: bool,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperatorCommand {
    /// Say how the operator's certificate is renewed
    Renew,
}
