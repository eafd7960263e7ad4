//! `hedgerow-agent enroll`: from a token, or an operator's approval, to an identity on disk.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hedgerow_identity::enroll::wire::{
    EnrollReply, EnrollRequest, Hello, Issued, REPLY_BYTES_MAX, RefusalCode, frame,
};
use hedgerow_identity::enroll::{
    EXPORTER_BYTES, EXPORTER_LABEL, EnrollError, Enrolled, TOKEN_TEXT_BYTES_MAX, Token,
    accept_hello, accept_issued,
};
use hedgerow_identity::key::SoftwareP256;
use hedgerow_identity::slots::Slot;
use hedgerow_identity::trust::Trust;
use hedgerow_linux::{disk, process};
use hedgerow_model::id::{DeviceName, Digest, Revision};
use hedgerow_model::resource::{Resource, ResourceKind};
use hedgerow_model::{Fault, Wall};
use minicbor::bytes::ByteVec;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use super::clock::Clock;
use super::identity::{Identity, Keys, fingerprint};
use super::store::{Enrollment, Store};
use super::tls;
use crate::config::{Config, check_endpoint};
use crate::failure::Failure;
use crate::state::Stored;

/// How long one message of the exchange may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Longest pause between two questions while an operator has not decided.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How often an unreachable or busy controller is tried before giving up.
const ATTEMPTS_MAX: u32 = 6;

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Order {
    /// A file with the token; without it and without `controller`, standard input.
    pub(crate) token_file: Option<PathBuf>,
    /// Manual approval: whom to ask.
    pub(crate) controller: Option<String>,
    /// Manual approval: the root set to believe.
    pub(crate) root_hash: Option<Digest>,
    /// The name the device would like.
    pub(crate) name: Option<DeviceName>,
}

/// Whom to ask and what to show.
struct Ticket {
    token: Option<Token>,
    genesis: Digest,
    controllers: Vec<String>,
}

/// What one exchange ended with.
enum Answer {
    Issued(Box<Enrolled>, u64),
    Pending(Duration),
}

/// Why one exchange failed, and whether the next may succeed.
enum Trouble {
    Later(Failure),
    Never(Failure),
}

/// Runs the command.
///
/// # Errors
///
/// One line with the remedy; what was made so far stays, and the next run goes on from there.
pub(crate) async fn run(
    order: &Order,
    config: &Config,
    say: &mut dyn FnMut(&str),
) -> Result<String, Failure> {
    let ticket = Ticket::read(order)?;
    let store = Store::open(&config.state)?;
    if store.read_slot(Slot::Current)?.is_some() {
        return Err(Failure::operator(
            "this device is enrolled already",
            "run `hedgerow-agent leave` first to make it a new device",
        ));
    }
    let mut clock = Clock::start(store.floor());
    let keys = match store.pending()? {
        Some(keys) => keys,
        None => {
            let keys = Keys::generate()?;
            store.write_pending(&keys)?;
            keys
        }
    };
    let (enrolled, serial) = obtain(&ticket, &keys, order, &mut clock, say).await?;
    let summary = keep(&store, &ticket, &keys, &enrolled, &clock)?;
    tracing::debug!(serial, "identity stored");
    Ok(summary)
}

impl Ticket {
    fn read(order: &Order) -> Result<Self, Failure> {
        if let Some(controller) = &order.controller {
            check_endpoint(controller)
                .map_err(|e| Failure::operator(e, "for instance --controller central:7443"))?;
            let genesis = order.root_hash.ok_or_else(|| {
                Failure::operator(
                    "--controller needs --root-hash",
                    "take it from `hedgerow status` on the controller's machine; without it anybody could answer",
                )
            })?;
            return Ok(Self {
                token: None,
                genesis,
                controllers: vec![controller.clone()],
            });
        }
        let text = read_token(order.token_file.as_deref())?;
        let token = Token::parse(&text).map_err(|e| {
            Failure::operator(
                e,
                "copy the whole line that `hedgerow token create` printed",
            )
        })?;
        Ok(Self {
            genesis: token.genesis(),
            controllers: token.endpoints().to_vec(),
            token: Some(token),
        })
    }
}

fn read_token(file: Option<&Path>) -> Result<Zeroizing<String>, Failure> {
    let bytes = match file {
        Some(path) => disk::read_bounded(path, TOKEN_TEXT_BYTES_MAX)?.ok_or_else(|| {
            Failure::operator(
                format!("there is no {}", path.display()),
                "name the file that holds the token",
            )
        })?,
        None => {
            let mut bytes = Vec::new();
            let limit = u64::try_from(TOKEN_TEXT_BYTES_MAX).unwrap_or(u64::MAX);
            std::io::stdin()
                .take(limit + 1)
                .read_to_end(&mut bytes)
                .map_err(|e| {
                    Failure::environment(
                        format!("cannot read the token from standard input: {e}"),
                        "pipe it in, or use --token-file",
                    )
                })?;
            bytes
        }
    };
    let bytes = Zeroizing::new(bytes);
    let text = std::str::from_utf8(&bytes)
        .map_err(|_e| Failure::operator("the token is not text", "copy it again"))?;
    if text.trim().is_empty() {
        return Err(Failure::operator(
            "there is no token",
            "pipe it in (`echo hgt1.… | hedgerow-agent enroll`) or use --token-file",
        ));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// Asks every controller in turn until one gives an identity or refuses for good.
async fn obtain(
    ticket: &Ticket,
    keys: &Keys,
    order: &Order,
    clock: &mut Clock,
    say: &mut dyn FnMut(&str),
) -> Result<(Box<Enrolled>, u64), Failure> {
    let mut attempts = 0;
    let mut said_pending = false;
    loop {
        let mut last = None;
        let mut pause = Duration::from_secs(2);
        for endpoint in &ticket.controllers {
            match exchange(endpoint, ticket, keys, order, clock).await {
                Ok(Answer::Issued(enrolled, serial)) => return Ok((enrolled, serial)),
                Ok(Answer::Pending(retry_after)) => {
                    if !said_pending {
                        say(&format!(
                            "waiting for an operator: `hedgerow device approve`; this device's fingerprint is {}",
                            fingerprint(&keys.identity)
                        ));
                    }
                    said_pending = true;
                    (last, attempts) = (None, 0);
                    pause = retry_after.clamp(Duration::from_secs(1), PAUSE_MAX);
                    break;
                }
                Err(Trouble::Never(failure)) => return Err(failure),
                Err(Trouble::Later(failure)) => {
                    say(&failure.message);
                    last = Some(failure);
                }
            }
        }
        if let Some(failure) = last {
            attempts += 1;
            if attempts >= ATTEMPTS_MAX {
                return Err(failure);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn exchange(
    endpoint: &str,
    ticket: &Ticket,
    keys: &Keys,
    order: &Order,
    clock: &mut Clock,
) -> Result<Answer, Trouble> {
    let unreachable = |e: String| {
        Trouble::Later(Failure::environment(
            e,
            "see whether the controller runs and its port is open from here",
        ))
    };
    let mut stream = tls::connect(endpoint, tls::for_enrollment().map_err(Trouble::Never)?)
        .await
        .map_err(|e| unreachable(e.into_text()))?;
    let hello = receive(&mut stream).await.map_err(unreachable)?;
    let hello = Hello::decode_body(&hello).map_err(|e| Trouble::Never(foreign(&e)))?;
    let trust = believe(&stream, &hello, ticket.genesis, clock).map_err(Trouble::Never)?;
    let request = request(&stream, ticket, keys, order).map_err(Trouble::Never)?;
    let sent = async {
        stream.write_all(&frame(&request)).await?;
        stream.flush().await
    };
    sent.await
        .map_err(|e| unreachable(format!("{endpoint}: {e}")))?;
    let reply = receive(&mut stream).await.map_err(unreachable)?;
    match EnrollReply::decode_body(&reply).map_err(|e| Trouble::Never(foreign(&e)))? {
        EnrollReply::Issued(issued) => accept(&issued, trust, keys, clock).map_err(Trouble::Never),
        EnrollReply::Pending {
            retry_after_secs, ..
        } => Ok(Answer::Pending(Duration::from_secs(u64::from(
            retry_after_secs,
        )))),
        EnrollReply::Refused { code, reason } => {
            let failure = refusal(code, &reason);
            Err(if code.is_temporary() {
                Trouble::Later(failure)
            } else {
                Trouble::Never(failure)
            })
        }
    }
}

/// Asks the controller at `endpoint` for its chain of trust manifests: what it says first to anybody
/// who would enroll. The caller believes nothing of it that the roots did not sign.
///
/// # Errors
///
/// One line that says what failed.
pub(crate) async fn manifests(endpoint: &str) -> Result<Vec<Vec<u8>>, String> {
    let config = tls::for_enrollment().map_err(|e| e.to_string())?;
    let mut stream = tls::connect(endpoint, config)
        .await
        .map_err(tls::ConnectError::into_text)?;
    let hello = receive(&mut stream).await?;
    let hello = Hello::decode_body(&hello).map_err(|e| e.to_string())?;
    Ok(hello.manifest_chain.into_iter().map(Vec::from).collect())
}

fn believe(
    stream: &TlsStream<TcpStream>,
    hello: &Hello,
    genesis: Digest,
    clock: &mut Clock,
) -> Result<Trust, Failure> {
    let leaf = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .ok_or_else(|| {
            Failure::new(
                Fault::Peer,
                "the controller shows no certificate",
                "report this",
            )
        })?;
    let trust = accept_hello(hello, genesis, leaf, clock.now()).map_err(|e| disbelief(&e))?;
    // What a root signed happened: the floor of trusted time rises with it.
    clock.raise(Wall::from_secs(trust.manifest().issued_secs));
    Ok(trust)
}

fn request(
    stream: &TlsStream<TcpStream>,
    ticket: &Ticket,
    keys: &Keys,
    order: &Order,
) -> Result<EnrollRequest, Failure> {
    let csr = keys.request()?;
    let signature = match &ticket.token {
        None => None,
        Some(token) => {
            let exporter = stream
                .get_ref()
                .1
                .export_keying_material([0u8; EXPORTER_BYTES], EXPORTER_LABEL, None)
                .map_err(|e| Failure::new(Fault::Bug, e, "report this"))?;
            let signature = token
                .sign(&exporter, &csr)
                .map_err(|e| Failure::new(Fault::Bug, e, "report this"))?;
            Some(ByteVec::from(signature))
        }
    };
    Ok(EnrollRequest {
        token: ticket.token.as_ref().map(Token::id),
        csr,
        introduction_key: keys.introduction_public(),
        signature,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        hostname: process::host_name(),
        name: order.name.clone(),
    })
}

fn accept(
    issued: &Issued,
    trust: Trust,
    keys: &Keys,
    clock: &mut Clock,
) -> Result<Answer, Failure> {
    let key = SoftwareP256::public(&keys.identity);
    let introduction = keys.introduction_public();
    let enrolled = accept_issued(issued, trust, &key, &introduction, clock.now())
        .map_err(|e| disbelief(&e))?;
    let begins = enrolled.identity.facts().not_before_secs();
    clock.raise(Wall::from_secs(begins));
    Ok(Answer::Issued(Box::new(enrolled), begins))
}

/// Writes everything down, the slot last: a device with a slot is enrolled.
fn keep(
    store: &Store,
    asked: &Ticket,
    keys: &Keys,
    enrolled: &Enrolled,
    clock: &Clock,
) -> Result<String, Failure> {
    store.write_enrollment(&Enrollment {
        genesis: asked.genesis,
        controllers: asked.controllers.clone(),
    })?;
    store.write_manifests(enrolled.trust.export())?;
    store.write_resources(first_resources(enrolled))?;
    store.write_floor(clock.floor())?;
    let ticket = enrolled.ticket.bytes().to_vec();
    let identity = Identity::new(keys, enrolled.chain.clone(), ticket);
    store.write_slot(Slot::Current, &identity.encode()?)?;
    store.remove_pending()?;
    let ticket = &enrolled.ticket;
    Ok(format!(
        "enrolled as {}.{} ({}) in {}, addresses {}",
        ticket.name,
        ticket.site,
        ticket.id,
        enrolled.trust.trust_domain(),
        ticket
            .addresses
            .iter()
            .map(|a| a.to_string())
            .collect::<Vec<_>>()
            .join(" and ")
    ))
}

/// What came with the identity, as the resources that the controller would send.
fn first_resources(enrolled: &Enrolled) -> Stored {
    let ticket = &enrolled.ticket;
    let resource = |kind, version, bytes: &[u8]| Resource {
        kind,
        version,
        bytes: bytes.to_vec(),
    };
    let ticket_version = Revision {
        timeline: ticket.epoch,
        number: ticket.not_after_secs,
    };
    let resources = vec![
        resource(
            ResourceKind::Revocations,
            enrolled.revocations.version,
            enrolled.revocations.bytes(),
        ),
        resource(ResourceKind::Ticket, ticket_version, ticket.bytes()),
        resource(
            ResourceKind::Config,
            enrolled.config.revision,
            enrolled.config.bytes(),
        ),
    ];
    Stored {
        revision: None,
        marks: resources.iter().map(|r| (r.kind, r.version)).collect(),
        resources,
    }
}

async fn receive(stream: &mut TlsStream<TcpStream>) -> Result<Vec<u8>, String> {
    let read = async {
        let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
        if length > REPLY_BYTES_MAX {
            return Err(std::io::Error::other(format!(
                "a message of {length} bytes"
            )));
        }
        let mut body = Vec::new();
        let limit = u64::try_from(length).unwrap_or(u64::MAX);
        let got = (&mut *stream).take(limit).read_to_end(&mut body).await?;
        if got < length {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(body)
    };
    match tokio::time::timeout(ANSWER_WITHIN, read).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(e)) => Err(format!("the controller ended the connection: {e}")),
        Err(_) => Err("the controller does not answer".to_owned()),
    }
}

fn foreign(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Fault::Peer,
        format!("the other end is no controller we understand: {error}"),
        "see whether the address is right and both have about the same version",
    )
}

fn disbelief(error: &EnrollError) -> Failure {
    Failure::new(
        error.fault(),
        format!("the controller is not believed: {error}"),
        "make a new token on the controller you mean; somebody else may be answering",
    )
}

fn refusal(code: RefusalCode, reason: &str) -> Failure {
    let remedy = match code {
        RefusalCode::TokenUnknown | RefusalCode::TokenExpired | RefusalCode::TokenSpent => {
            "make a new one with `hedgerow token create`"
        }
        RefusalCode::BadSignature | RefusalCode::Malformed => {
            "copy the whole token again; both ends should have about the same version"
        }
        RefusalCode::Rejected => "ask the operator who refused",
        RefusalCode::Name => "choose another --name",
        RefusalCode::Key => {
            "ask the operator: this key is known already; `hedgerow-agent leave --force` makes new keys"
        }
        RefusalCode::Busy | RefusalCode::Internal => "try again later",
    };
    let fault = if code.is_temporary() {
        Fault::Environment
    } else {
        Fault::Operator
    };
    Failure::new(
        fault,
        format!(
            "enrollment refused ({}): {}",
            code.as_str(),
            reason.replace(char::is_control, " ")
        ),
        remedy,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_one_line_that_says_what_and_what_to_do() {
        let codes = [
            (RefusalCode::TokenUnknown, 1, "hedgerow token create"),
            (RefusalCode::TokenExpired, 1, "hedgerow token create"),
            (RefusalCode::TokenSpent, 1, "hedgerow token create"),
            (RefusalCode::BadSignature, 1, "copy the whole token"),
            (RefusalCode::Malformed, 1, "copy the whole token"),
            (RefusalCode::Rejected, 1, "ask the operator"),
            (RefusalCode::Name, 1, "--name"),
            (RefusalCode::Key, 1, "leave --force"),
            (RefusalCode::Busy, 4, "try again"),
            (RefusalCode::Internal, 4, "try again"),
        ];
        for (code, exit, remedy) in codes {
            let failure = refusal(code, "the token was used up\nby another device");
            let line = failure.to_string();
            assert_eq!(failure.fault.exit_code(), exit, "{line}");
            assert!(line.contains(code.as_str()), "{line}");
            assert!(
                line.contains("used up by another") && line.contains(remedy),
                "{line}"
            );
            assert_eq!(line.lines().count(), 1, "{line}");
        }
    }
}
