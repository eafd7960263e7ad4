//! Why something was refused, by operation. A refusal changes nothing.

use hedgerow_model::Fault;
use hedgerow_model::address::Overlay;
use hedgerow_model::id::{DeviceId, Digest, Revision, SiteName};
use hedgerow_model::statement::{KeyId, Revoked, Role};
use hedgerow_model::wire::WireError;

use crate::standing::Validity;

/// A signature is not by this key over these bytes, or not in its one accepted spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not valid")]
pub struct BadSignature;

impl BadSignature {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        Fault::Peer
    }
}

/// Why bytes are not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a public key of a known kind.
    #[error("not a public key of a known kind")]
    Malformed,
    /// Not a private key of the wanted kind in PKCS#8.
    #[error("not a private key of the wanted kind in PKCS#8")]
    NotPkcs8,
    /// A private key file is longer than any key.
    #[error("a key of {bytes} bytes is longer than any key")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
}

impl KeyError {
    /// Returns who has to act: keys come from our own files or from the other end.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Malformed => Fault::Peer,
            Self::NotPkcs8 | Self::TooLong { .. } => Fault::Environment,
        }
    }
}

/// Why nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The key store refused or failed.
    #[error("the key store could not sign: {reason}")]
    KeyStore {
        /// Its own account.
        reason: String,
    },
    /// The key store answered with something that is no signature of its algorithm.
    #[error("the key store answered with something that is no signature")]
    MalformedSignature,
    /// The key is of a kind that may not sign this.
    #[error("a key of this kind does not sign that")]
    WrongKind,
    /// What should be signed could not be encoded.
    #[error("what should be signed cannot be encoded")]
    Encoding,
}

impl SignError {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        match self {
            Self::KeyStore { .. } | Self::MalformedSignature => Fault::Environment,
            Self::WrongKind | Self::Encoding => Fault::Bug,
        }
    }
}

/// Why signed bytes are not a valid envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not a COSE_Sign1 in the one accepted spelling.
    #[error("not a COSE_Sign1 in its one spelling")]
    Malformed,
    /// Names another key than the one that should have signed.
    #[error("signed by {named:?}, another key than expected")]
    WrongKey {
        /// The key that is named.
        named: KeyId,
    },
    /// The signature does not hold for these bytes as this kind of statement.
    #[error("the signature of {named:?} does not hold")]
    BadSignature {
        /// The key that is named.
        named: KeyId,
    },
}

impl EnvelopeError {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        Fault::Peer
    }
}

/// Why a ticket is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedTicket {
    /// The envelope or its signature.
    #[error("ticket: {0}")]
    Envelope(EnvelopeError),
    /// The payload is not a ticket in its one spelling.
    #[error("{0}")]
    Wire(WireError),
    /// No issuer of the manifest has this key.
    #[error("ticket signed by {key:?}, which the manifest does not list as an issuer")]
    UnknownIssuer {
        /// The key that is named.
        key: KeyId,
    },
    /// The issuer, the device, its key or its site is revoked.
    #[error("revoked: {what:?}")]
    Revoked {
        /// What is revoked.
        what: Revoked,
    },
    /// A site's issuer signed for another site.
    #[error("an issuer of site {issuer} signed for site {ticket}")]
    OtherSite {
        /// The issuer's site.
        issuer: SiteName,
        /// The ticket's site.
        ticket: SiteName,
    },
    /// An address outside what the issuer may assign.
    #[error("address {address} lies outside what the issuer may assign")]
    AddressOutOfScope {
        /// The address.
        address: Overlay,
    },
    /// The ticket says it lives longer than its issuer.
    #[error("ticket ends at {ticket_secs}, after its issuer at {issuer_secs}")]
    OutlivesIssuer {
        /// The ticket's end.
        ticket_secs: u64,
        /// The issuer's end.
        issuer_secs: u64,
    },
    /// Superseded by a ticket with other labels, addresses or state.
    #[error("ticket of epoch {epoch}, but {minimum} is in force")]
    OldEpoch {
        /// The ticket's epoch.
        epoch: u64,
        /// The lowest that is accepted.
        minimum: u64,
    },
    /// Expired, and not in grace.
    #[error("ticket ended at {not_after_secs}: {validity:?}")]
    Expired {
        /// The ticket's end.
        not_after_secs: u64,
        /// What is left of it.
        validity: Validity,
    },
    /// A ticket that should be our own names another device or key.
    #[error("the ticket of {device} is not ours")]
    NotOurs {
        /// The device it names.
        device: DeviceId,
    },
}

impl RefusedTicket {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        Fault::Peer
    }

    /// Returns a stable word for events and counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Envelope(_) => "ticket_signature",
            Self::Wire(_) => "ticket_malformed",
            Self::UnknownIssuer { .. } => "ticket_issuer_unknown",
            Self::Revoked { .. } => "revoked",
            Self::OtherSite { .. } => "ticket_other_site",
            Self::AddressOutOfScope { .. } => "ticket_address",
            Self::OutlivesIssuer { .. } => "ticket_outlives_issuer",
            Self::OldEpoch { .. } => "ticket_epoch",
            Self::Expired { .. } => "ticket_expired",
            Self::NotOurs { .. } => "ticket_not_ours",
        }
    }
}

/// Why a binding is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedBinding {
    /// The envelope or its signature; another key than the ticket's.
    #[error("binding: {0}")]
    Envelope(EnvelopeError),
    /// The payload is not a binding in its one spelling.
    #[error("{0}")]
    Wire(WireError),
    /// It speaks of another device than the ticket.
    #[error("binding of {binding} beside the ticket of {ticket}")]
    OtherDevice {
        /// The binding's device.
        binding: DeviceId,
        /// The ticket's device.
        ticket: DeviceId,
    },
    /// Its end has passed.
    #[error("binding ended at {not_after_secs}")]
    Expired {
        /// Its end.
        not_after_secs: u64,
    },
    /// It wants to live longer than bindings may.
    #[error("binding lives {secs} seconds, longer than bindings may")]
    TooLong {
        /// From its sequence to its end.
        secs: u64,
    },
    /// It was made for a time far ahead.
    #[error("binding made for {sequence}, far ahead of now")]
    Ahead {
        /// Its sequence.
        sequence: u64,
    },
}

impl RefusedBinding {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        Fault::Peer
    }

    /// Returns a stable word for events and counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Envelope(_) => "binding_signature",
            Self::Wire(_) => "binding_malformed",
            Self::OtherDevice { .. } => "binding_other_device",
            Self::Expired { .. } => "binding_expired",
            Self::TooLong { .. } => "binding_too_long",
            Self::Ahead { .. } => "binding_ahead",
        }
    }
}

/// Why a statement of a role key, or a beacon, is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedStatement {
    /// The envelope or its signature.
    #[error("{what}: {source}")]
    Envelope {
        /// The kind of statement.
        what: &'static str,
        /// What is wrong with it.
        source: EnvelopeError,
    },
    /// The payload is not such a statement in its one spelling.
    #[error("{0}")]
    Wire(WireError),
    /// The manifest does not give this key the role.
    #[error("{what} signed by {key:?}, which has no right to")]
    NotInRole {
        /// The kind of statement.
        what: &'static str,
        /// The key that is named.
        key: KeyId,
        /// The role it lacks; absent when an issuer was wanted.
        role: Option<Role>,
    },
    /// The issuer that signed is revoked.
    #[error("{what} signed by the revoked issuer {key:?}")]
    RevokedIssuer {
        /// The kind of statement.
        what: &'static str,
        /// The issuer.
        key: KeyId,
    },
    /// Entries are out of order, doubled, too many or too long.
    #[error("{what}: {rule}")]
    OutOfBounds {
        /// The kind of statement.
        what: &'static str,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// It is meant for another device or site.
    #[error("{what} is for {subject}, not for us")]
    OtherSubject {
        /// The kind of statement.
        what: &'static str,
        /// Whom it is for.
        subject: String,
    },
}

impl RefusedStatement {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        Fault::Peer
    }

    /// Returns a stable word for events and counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Envelope { .. } => "signature",
            Self::Wire(_) => "malformed",
            Self::NotInRole { .. } => "signer_not_in_role",
            Self::RevokedIssuer { .. } => "signer_revoked",
            Self::OutOfBounds { .. } => "out_of_bounds",
            Self::OtherSubject { .. } => "other_subject",
        }
    }
}

/// A list older than the one in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} {got} is older than {have}, which is in force")]
pub struct Rollback {
    /// The kind of statement.
    pub what: &'static str,
    /// What is in force.
    pub have: Revision,
    /// What was offered.
    pub got: Revision,
}

impl Rollback {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        Fault::Peer
    }
}

/// Why a manifest is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedManifest {
    /// Not a list of signatures over one payload in its one spelling.
    #[error("not a signed manifest in its one spelling")]
    Malformed,
    /// The payload is not a manifest in its one spelling.
    #[error("{0}")]
    Wire(WireError),
    /// There is no manifest at all.
    #[error("the chain of manifests is empty")]
    Empty,
    /// The root set is not the one that the token or the configuration pins.
    #[error("the root set's digest is {got}, but {want} is pinned")]
    WrongGenesis {
        /// What is pinned.
        want: Digest,
        /// What was offered.
        got: Digest,
    },
    /// The first manifest of a chain must be version 1 without a predecessor.
    #[error("a chain begins with version 1, not {got}")]
    NotFirst {
        /// What was offered.
        got: u64,
    },
    /// An older manifest than the one in force.
    #[error("manifest {got} is older than {have}, which is in force")]
    Rollback {
        /// What is in force.
        have: u64,
        /// What was offered.
        got: u64,
    },
    /// Versions between are missing.
    #[error("manifest {got} does not follow {have}: those between are missing")]
    Gap {
        /// What is in force.
        have: u64,
        /// What was offered.
        got: u64,
    },
    /// Another manifest with a version we have, or one that follows another predecessor.
    #[error("manifest {version} belongs to another chain than ours")]
    Fork {
        /// Its version.
        version: u64,
    },
    /// The trust domain or the genesis changed.
    #[error("manifest {version} speaks of another trust domain")]
    OtherDomain {
        /// Its version.
        version: u64,
    },
    /// Too few roots signed.
    #[error("{have} of {need} needed signatures hold")]
    TooFewSignatures {
        /// How many hold.
        have: usize,
        /// How many are needed.
        need: usize,
    },
    /// A list is out of order, doubled, too long, or a certificate disagrees with its key.
    #[error("manifest {version}: {rule}")]
    OutOfBounds {
        /// Its version.
        version: u64,
        /// The rule it breaks.
        rule: &'static str,
    },
}

impl RefusedManifest {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        match self {
            Self::WrongGenesis { .. } => Fault::Operator,
            Self::Malformed
            | Self::Wire(_)
            | Self::Empty
            | Self::NotFirst { .. }
            | Self::Rollback { .. }
            | Self::Gap { .. }
            | Self::Fork { .. }
            | Self::OtherDomain { .. }
            | Self::TooFewSignatures { .. }
            | Self::OutOfBounds { .. } => Fault::Peer,
        }
    }
}

/// Why bytes are not a certificate or request of our profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not DER of the wanted kind in its one spelling.
    #[error("not DER of the wanted kind")]
    Malformed,
    /// Breaks the profile.
    #[error("breaks the profile: {rule}")]
    Profile {
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A name is not one of our identities.
    #[error("a name is not one of our identities")]
    NotAnIdentity,
    /// A request is not signed by the key in it.
    #[error("the request is not signed by the key in it")]
    NoProof,
}

impl CertificateError {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        Fault::Peer
    }
}

/// Why a peer's certificate is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedCertificate {
    /// Its form or profile.
    #[error("certificate: {0}")]
    Certificate(CertificateError),
    /// No issuer of the manifest signed it.
    #[error("no issuer of the manifest signed the certificate")]
    UnknownIssuer,
    /// It names something outside our trust domain.
    #[error("`{uri}` is no identity of our trust domain")]
    OtherDomain {
        /// The name.
        uri: String,
    },
    /// A site's issuer signed for something else.
    #[error("an issuer of site {issuer} signed for {path}")]
    OutOfScope {
        /// The issuer's site.
        issuer: SiteName,
        /// The path that it names.
        path: String,
    },
    /// It says it lives longer than its issuer.
    #[error("certificate ends at {leaf_secs}, after its issuer at {issuer_secs}")]
    OutlivesIssuer {
        /// Its end.
        leaf_secs: u64,
        /// The issuer's end.
        issuer_secs: u64,
    },
    /// It lives longer than leaves may.
    #[error("certificate lives {secs} seconds, longer than a device's may")]
    LivesTooLong {
        /// From beginning to end.
        secs: u64,
    },
    /// A DNS or IP name is missing, doubled or of another site.
    #[error("names: {rule}")]
    Names {
        /// The rule it breaks.
        rule: &'static str,
    },
    /// An address outside what the issuer may assign.
    #[error("address {address} lies outside what the issuer may assign")]
    AddressOutOfScope {
        /// The address.
        address: std::net::IpAddr,
    },
    /// It is someone, but not whom this connection needs.
    #[error("{path} is not what this connection needs")]
    WrongPurpose {
        /// The path that it names.
        path: String,
    },
    /// The issuer, the device, its key or its site is revoked.
    #[error("revoked: {what:?}")]
    Revoked {
        /// What is revoked.
        what: Revoked,
    },
    /// Expired, and good for nothing here.
    #[error("certificate ended at {not_after_secs}: {validity:?}")]
    Expired {
        /// Its end.
        not_after_secs: u64,
        /// What is left of it.
        validity: Validity,
    },
}

impl RefusedCertificate {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        Fault::Peer
    }

    /// Returns a stable word for events and counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "certificate_malformed",
            Self::UnknownIssuer => "certificate_issuer_unknown",
            Self::OtherDomain { .. } => "certificate_other_domain",
            Self::OutOfScope { .. } => "certificate_other_site",
            Self::OutlivesIssuer { .. } => "certificate_outlives_issuer",
            Self::LivesTooLong { .. } => "certificate_lives_too_long",
            Self::Names { .. } => "certificate_names",
            Self::AddressOutOfScope { .. } => "certificate_address",
            Self::WrongPurpose { .. } => "certificate_purpose",
            Self::Revoked { .. } => "revoked",
            Self::Expired { .. } => "certificate_expired",
        }
    }
}

/// Why a text is not an enrollment token. The text is never repeated: it holds a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin as tokens do.
    #[error("an enrollment token begins with hgt1.")]
    Prefix,
    /// It is longer than any token.
    #[error("the text is longer than any enrollment token")]
    TooLong,
    /// It is cut short or changed.
    #[error("the enrollment token is damaged; copy all of it")]
    Damaged,
    /// Its controllers are not 1 to 8 times `host:port`.
    #[error("a token names 1 to 8 controllers as host:port")]
    Endpoints,
    /// Not a token's public name.
    #[error("a token's id takes 13 characters of a-z and 2-7")]
    NotAnId,
}

impl TokenError {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        Fault::Operator
    }
}

/// Why an enrollment did not succeed. Nothing is stored; the key stays for the next attempt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrollError {
    /// The controller's manifests do not begin at the pinned root set, or do not hold.
    #[error("controller: {0}")]
    Manifest(RefusedManifest),
    /// The server's certificate is not a controller's.
    #[error("controller: {0}")]
    Server(RefusedCertificate),
    /// The certificate that was issued does not hold.
    #[error("issued: {0}")]
    Leaf(RefusedCertificate),
    /// The ticket that was issued does not hold.
    #[error("issued: {0}")]
    Ticket(RefusedTicket),
    /// The revocation list or configuration does not hold.
    #[error("issued: {0}")]
    Statement(RefusedStatement),
    /// The parts of what was issued contradict each other or our request.
    #[error("the issued {what} disagrees with the rest")]
    Disagrees {
        /// Which part.
        what: &'static str,
    },
    /// The token's signature does not hold for this request on this connection.
    #[error("the token's signature does not hold for this request on this connection")]
    BadSignature,
}

impl EnrollError {
    /// Returns who has to act.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Manifest(refused) => refused.fault(),
            Self::Server(_)
            | Self::Leaf(_)
            | Self::Ticket(_)
            | Self::Statement(_)
            | Self::Disagrees { .. }
            | Self::BadSignature => Fault::Peer,
        }
    }
}
