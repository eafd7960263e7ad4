//! Deciding on enrollment: who gets an identity, and what it says.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use hedgerow_identity::certificate::{SpiffeId, dns_name};
use hedgerow_identity::csr;
use hedgerow_identity::enroll::wire::{EnrollReply, EnrollRequest, Issued, RefusalCode};
use hedgerow_identity::enroll::{EXPORTER_BYTES, TokenId, verify_request};
use hedgerow_identity::fingerprint::fingerprint_of;
use hedgerow_identity::key::PublicKey;
use hedgerow_model::address::{OverlayAddresses, site_prefix};
use hedgerow_model::event::{Event, EventKind};
use hedgerow_model::id::{DeviceId, DeviceName, Digest, Labels, SiteName};
use hedgerow_model::program::DeviceState;
use hedgerow_model::statement::{Revoked, Ticket, X25519Public};
use hedgerow_model::{Wall, wire};

use crate::control::{Controller, Draft, set_members, states_of};
use crate::entropy;
use crate::hub::{Counters, dirty};
use crate::issue::{Authority, IssueError, Subject};
use crate::refusal::{Kind, Refusal};
use crate::sign::Signer;
use crate::snapshot::Snapshot;
use crate::store::devices::DeviceRecord;
use crate::store::pending::{Decision, PENDING_HOURS, PendingRecord};
use crate::store::tokens::TokenRecord;
use crate::store::{Change, StoreError, addresses, devices, pending, set_fact, tokens};

/// How long a device that waits for approval shall wait before it asks again.
const ASK_AGAIN_SECS: u32 = 15;
/// How long a request may wait for its turn to be signed.
const SIGN_WITHIN: Duration = Duration::from_secs(5);
/// Names tried before a device is named by its id.
const NAME_TRIES: u32 = 1000;

/// A request whose key was proven.
pub(crate) struct Asker {
    /// The request.
    pub(crate) request: EnrollRequest,
    /// Its key.
    pub(crate) key: csr::Request,
    /// Where it comes from.
    pub(crate) source: IpAddr,
}

/// What a new device shall be.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Its site.
    pub(crate) site: SiteName,
    /// Its labels.
    pub(crate) labels: Labels,
    /// The name it must have, if it may not choose.
    pub(crate) name: Option<DeviceName>,
    /// The token that brought it.
    pub(crate) token: Option<[u8; 8]>,
}

/// A refusal on the enrollment protocol.
#[derive(Debug)]
pub(crate) struct No {
    code: RefusalCode,
    reason: String,
}

impl No {
    fn new(code: RefusalCode, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.kind {
            Kind::Busy | Kind::Unavailable => RefusalCode::Busy,
            Kind::Conflict => RefusalCode::Name,
            Kind::Invalid => RefusalCode::Malformed,
            Kind::NotFound
            | Kind::NeedsConfirmation
            | Kind::Unauthenticated
            | Kind::Forbidden
            | Kind::Bug => RefusalCode::Internal,
        };
        Self::new(code, refusal.to_string())
    }
}

impl From<StoreError> for No {
    fn from(error: StoreError) -> Self {
        Refusal::from(error).into()
    }
}

impl From<IssueError> for No {
    fn from(error: IssueError) -> Self {
        Refusal::from(error).into()
    }
}

impl Controller {
    /// Answers an enrollment request that came over a connection with this exporter.
    pub(crate) async fn enroll(
        &self,
        request: EnrollRequest,
        exporter: [u8; EXPORTER_BYTES],
        source: IpAddr,
    ) -> EnrollReply {
        let token = request.token;
        let hostname = request.hostname.clone();
        match self.decide(request, exporter, source).await {
            Ok(reply) => reply,
            Err(no) => {
                let kind = match no.code {
                    RefusalCode::TokenSpent => EventKind::TokenReused,
                    RefusalCode::Malformed
                    | RefusalCode::TokenUnknown
                    | RefusalCode::TokenExpired
                    | RefusalCode::BadSignature
                    | RefusalCode::Rejected
                    | RefusalCode::Name
                    | RefusalCode::Key
                    | RefusalCode::Busy
                    | RefusalCode::Internal => EventKind::EnrollmentRefused,
                };
                let mut event = Event::new(self.clock.wall(), kind)
                    .detail("reason", no.code.as_str())
                    .detail("text", &no.reason)
                    .detail("source", source)
                    .detail("hostname", hostname);
                if let Some(token) = token {
                    event = event.detail("token", token);
                }
                // It takes a valid signature of the token, so a stranger cannot cause it.
                if kind == EventKind::TokenReused {
                    self.event(event);
                } else {
                    self.event_sampled(no.code.as_str(), event);
                }
                EnrollReply::Refused {
                    code: no.code,
                    reason: no.reason,
                }
            }
        }
    }

    async fn decide(
        &self,
        request: EnrollRequest,
        exporter: [u8; EXPORTER_BYTES],
        source: IpAddr,
    ) -> Result<EnrollReply, No> {
        let key = csr::parse(&request.csr).map_err(|e| {
            No::new(
                RefusalCode::Malformed,
                format!("the certificate request cannot be used: {e}"),
            )
        })?;
        let revoked = Revoked::Key(key.spki_digest());
        if self.snapshot().standing.is_revoked(&revoked) {
            return Err(No::new(
                RefusalCode::Key,
                "this device's key is revoked; remove its state directory to enroll with a new key",
            ));
        }
        let asker = Asker {
            request,
            key,
            source,
        };
        let _turn = tokio::time::timeout(SIGN_WITHIN, self.signings.acquire())
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| No::new(RefusalCode::Busy, "too many enroll at once; try again"))?;
        match asker.request.token {
            Some(id) => self.enroll_by_token(id, asker, exporter).await,
            None => self.enroll_by_approval(asker, None).await,
        }
    }

    async fn enroll_by_token(
        &self,
        id: TokenId,
        asker: Asker,
        exporter: [u8; EXPORTER_BYTES],
    ) -> Result<EnrollReply, No> {
        let unknown = || {
            No::new(
                RefusalCode::TokenUnknown,
                format!("no token {id} is known here; `hedgerow token create` makes one"),
            )
        };
        let token = self.store.token(&id.0).await?.ok_or_else(unknown)?;
        verify_request(&asker.request, &token.public_key, &exporter).map_err(|_e| {
            No::new(
                RefusalCode::BadSignature,
                format!("the signature of token {id} does not hold on this connection"),
            )
        })?;
        let now = self.clock.wall();
        check_token(&token, id, now)?;
        let mut draft = self.draft().await;
        let key_hash = asker.key.spki_digest();
        let mut change = self
            .store
            .change("enrollment", "enroll", &id.to_string(), now)
            .await?;
        let used = tokens::use_by(&mut change.tx, &id.0, &key_hash).await?;
        match used {
            Some(Some(device)) => {
                drop(change);
                return self.again(&draft.next, device, &key_hash);
            }
            Some(None) => {}
            None => {
                let now_used = tokens::get(&mut change.tx, &id.0).await?;
                if now_used.is_none_or(|t| t.used >= t.uses_max) {
                    return Err(No::new(
                        RefusalCode::TokenSpent,
                        format!(
                            "token {id} is already used by another device; if that was not you, \
                             someone else has it: `hedgerow token revoke {id}`, then create another"
                        ),
                    ));
                }
            }
        }
        let place = place_of(&token);
        if token.approve {
            drop((change, draft));
            return self.enroll_by_approval(asker, Some(place)).await;
        }
        check_name(&place, &asker.request)?;
        let record = self
            .admit(&mut draft, &mut change, &asker, &place, now)
            .await?;
        tokens::mark_used(&mut change.tx, &id.0, &key_hash, Some(record.id), now).await?;
        self.finish(draft, change, &record, asker.source).await
    }

    async fn enroll_by_approval(
        &self,
        asker: Asker,
        place: Option<Place>,
    ) -> Result<EnrollReply, No> {
        let now = self.clock.wall();
        let key_hash = asker.key.spki_digest();
        let fingerprint = fingerprint_of(&key_hash);
        let wait = EnrollReply::Pending {
            retry_after_secs: ASK_AGAIN_SECS,
            fingerprint: fingerprint.clone(),
        };
        if let Some(known) = self.store.pending_by_key(&key_hash, now).await? {
            return match (known.decision, known.device) {
                (Decision::Waiting, _) | (Decision::Approved, None) => Ok(wait),
                (Decision::Approved, Some(device)) => {
                    self.again(&self.snapshot(), device, &key_hash)
                }
                (Decision::Rejected, _) => Err(No::new(
                    RefusalCode::Rejected,
                    "an operator rejected this device; speak to them",
                )),
            };
        }
        let mut tx = self.store.note().await?;
        if devices::by_key(&mut tx, &key_hash).await?.is_some() {
            return Err(key_is_known());
        }
        let (token, site, labels, name) = match place {
            Some(p) => (p.token, Some(p.site), p.labels, p.name),
            None => (None, None, Labels::default(), asker.request.name.clone()),
        };
        let record = PendingRecord {
            key_hash,
            csr: asker.request.csr.clone(),
            introduction_key: asker.request.introduction_key,
            hostname: asker.request.hostname.clone(),
            source: asker.source.to_string(),
            fingerprint: fingerprint.clone(),
            token,
            site,
            labels,
            name,
            decision: Decision::Waiting,
            device: None,
            created: now,
            expires: now + Duration::from_secs(PENDING_HOURS * 3600),
        };
        pending::add(&mut tx, &record).await?;
        if let Some(token) = &record.token {
            tokens::mark_used(&mut tx, token, &key_hash, None, now).await?;
        }
        tx.commit().await?;
        self.event_sampled(
            "approval",
            Event::new(now, EventKind::ApprovalRequested)
                .detail("fingerprint", fingerprint)
                .detail("hostname", &record.hostname)
                .detail("source", &record.source),
        );
        Ok(wait)
    }

    /// Gives the same key the same answer.
    fn again(
        &self,
        snapshot: &Snapshot,
        device: DeviceId,
        key: &Digest,
    ) -> Result<EnrollReply, No> {
        match snapshot.device(device) {
            Some(d) if d.ended.is_none() && d.key_hash == *key => issued(snapshot, d),
            _ => Err(key_is_known()),
        }
    }

    /// Makes a device in a change. Nothing is kept before [`Controller::finish`].
    pub(crate) async fn admit(
        &self,
        draft: &mut Draft<'_>,
        change: &mut Change,
        asker: &Asker,
        place: &Place,
        now: Wall,
    ) -> Result<DeviceRecord, No> {
        let key_hash = asker.key.spki_digest();
        if devices::by_key(&mut change.tx, &key_hash).await?.is_some() {
            return Err(key_is_known());
        }
        let id = DeviceId(entropy::bytes());
        let Some(site) = draft.next.sites.get(&place.site) else {
            return Err(Refusal::no_site(place.site.as_str()).into());
        };
        let domain = draft.next.trust.domain_prefix();
        let v6 = address_v6(&site_prefix(&domain, site.record.number).address(), id);
        let v4 = addresses::allocate(
            &mut change.tx,
            &self.config.blocks,
            &place.site,
            id,
            now.secs(),
            u32::from_ne_bytes(entropy::bytes()),
        )
        .await?;
        let name = choose_name(change, place, &asker.request, id).await?;
        let authority = self.authority();
        let mut record = DeviceRecord {
            id,
            name,
            site: place.site.clone(),
            labels: place.labels.clone(),
            identity_key: asker.key.key(),
            key_hash,
            introduction_key: asker.request.introduction_key,
            addresses: OverlayAddresses { v6, v4: Some(v4) },
            epoch: 1,
            state: first_state(&draft.next, &place.labels),
            flagged: false,
            not_after_secs: authority.end_of(now, Duration::from_secs(self.config.device_secs())),
            ticket: Vec::new(),
            chain: Vec::new(),
            generation: 0,
            enrolled: now,
            ended: None,
        };
        let signer = Signer {
            authority: &authority,
            trust: &draft.next.trust,
        };
        record.ticket = signer.ticket(&ticket_of(&record))?;
        record.chain = encode_chain(&self.leaf_for(&authority, &draft.next, &record, now)?);
        devices::put(&mut change.tx, &record).await?;
        set_members(&mut change.tx, change.revision).await?;
        if record.state.is_some() {
            let with = draft.next.living().map(|d| &**d).chain([&record]);
            let states = signer.states(&states_of(change.revision, with))?;
            let name = crate::control::fact::STATES;
            set_fact(&mut change.tx, name, states.bytes()).await?;
            draft.next.set_states(states);
        }
        Ok(record)
    }

    /// Commits an admitted device and answers it.
    async fn finish(
        &self,
        mut draft: Draft<'_>,
        change: Change,
        record: &DeviceRecord,
        source: IpAddr,
    ) -> Result<EnrollReply, No> {
        let revision = change.commit().await?;
        draft.next.set_device(record.clone());
        draft.next.members = revision;
        let reply = issued(&draft.next, record);
        self.enrolled(draft, revision, record, &source.to_string());
        reply
    }

    /// Publishes a snapshot with a new device in it.
    pub(crate) fn enrolled(
        &self,
        draft: Draft<'_>,
        revision: hedgerow_model::id::Revision,
        record: &DeviceRecord,
        source: &str,
    ) {
        self.publish(draft, revision);
        Counters::add(&self.hub.counters.issued);
        if record.state.is_some() {
            self.hub.raise_all(dirty::TRUST);
        }
        self.names_changed();
        self.event(
            Event::new(self.clock.wall(), EventKind::DeviceEnrolled)
                .device(record.id)
                .detail("name", &record.name)
                .detail("site", &record.site)
                .detail("labels", &record.labels)
                .detail("address", record.addresses.v6)
                .detail("source", source),
        );
    }

    /// Makes the certificate chain of a device.
    pub(crate) fn leaf_for(
        &self,
        authority: &Authority,
        snapshot: &Snapshot,
        device: &DeviceRecord,
        now: Wall,
    ) -> Result<Vec<Vec<u8>>, Refusal> {
        let spki = PublicKey::P256(device.identity_key)
            .to_spki()
            .map_err(IssueError::from)?;
        let id = SpiffeId::Device {
            site: device.site.clone(),
            id: device.id,
        };
        let subject = Subject {
            uri: id.uri(snapshot.trust.trust_domain()),
            dns: dns_name(device.name.as_str(), &device.site, &self.config.suffix),
            addresses: device.addresses.iter().map(|a| a.0).collect(),
        };
        Ok(authority.leaf(&spki, &subject, now, device.not_after_secs)?)
    }
}

/// Returns what a device's ticket says.
pub(crate) fn ticket_of(device: &DeviceRecord) -> Ticket {
    Ticket {
        id: device.id,
        name: device.name.clone(),
        site: device.site.clone(),
        identity_key: device.identity_key,
        introduction_key: device.introduction_key,
        labels: device.labels.clone(),
        addresses: device.addresses,
        epoch: device.epoch,
        not_after_secs: device.not_after_secs,
    }
}

/// Encodes a certificate chain for the store.
pub(crate) fn encode_chain(chain: &[Vec<u8>]) -> Vec<u8> {
    let chain: Vec<minicbor::bytes::ByteVec> = chain.iter().cloned().map(Into::into).collect();
    wire::encode(&chain)
}

/// Decodes a stored certificate chain.
pub(crate) fn decode_chain(bytes: &[u8]) -> Vec<minicbor::bytes::ByteVec> {
    minicbor::decode(bytes).unwrap_or_default()
}

/// The device's own half of an address: the first 64 bits of its id, which is never reused.
fn address_v6(prefix: &IpAddr, id: DeviceId) -> Ipv6Addr {
    let base = match prefix {
        IpAddr::V6(a) => u128::from(*a),
        IpAddr::V4(_) => 0,
    };
    let host =
        id.0.iter()
            .take(8)
            .fold(0u128, |n, &b| (n << 8) | u128::from(b));
    // The first addresses of a network have meanings of their own (RFC 4291 §2.6.1).
    Ipv6Addr::from(base | host.max(256))
}

fn issued(snapshot: &Snapshot, device: &DeviceRecord) -> Result<EnrollReply, No> {
    let site = snapshot
        .sites
        .get(&device.site)
        .ok_or_else(|| Refusal::no_site(device.site.as_str()))?;
    let manifest_chain = snapshot.trust.export().into_iter().map(Into::into);
    Ok(EnrollReply::Issued(Box::new(Issued {
        device: device.id,
        chain: decode_chain(&device.chain),
        ticket: device.ticket.clone(),
        manifest_chain: manifest_chain.collect(),
        revocations: snapshot.revocations.content().to_vec(),
        config: site.config.content().to_vec(),
    })))
}

fn check_token(token: &TokenRecord, id: TokenId, now: Wall) -> Result<(), No> {
    if token.revoked.is_some() {
        return Err(No::new(
            RefusalCode::TokenUnknown,
            format!("token {id} was revoked; `hedgerow token create` makes another"),
        ));
    }
    if now >= token.expires {
        return Err(No::new(
            RefusalCode::TokenExpired,
            format!("token {id} has expired; `hedgerow token create` makes another"),
        ));
    }
    Ok(())
}

fn place_of(token: &TokenRecord) -> Place {
    Place {
        site: token.site.clone(),
        labels: token.labels.clone(),
        name: token.name.clone(),
        token: Some(token.id),
    }
}

fn check_name(place: &Place, request: &EnrollRequest) -> Result<(), No> {
    match (&place.name, &request.name) {
        (Some(bound), Some(wish)) if bound != wish => Err(No::new(
            RefusalCode::Name,
            format!("this token is bound to the name {bound}; leave out --name"),
        )),
        _ => Ok(()),
    }
}

fn key_is_known() -> No {
    No::new(
        RefusalCode::Key,
        "this key belongs to a device already; `hedgerow device remove` it, delete the agent's \
         state directory and enroll again",
    )
}

fn first_state(snapshot: &Snapshot, labels: &Labels) -> Option<DeviceState> {
    if labels.is_empty() {
        snapshot.policy.policy.unknown_device_state()
    } else {
        None
    }
}

async fn choose_name(
    change: &mut Change,
    place: &Place,
    request: &EnrollRequest,
    id: DeviceId,
) -> Result<DeviceName, No> {
    let asked = place.name.clone().or_else(|| request.name.clone());
    if let Some(name) = asked {
        if devices::name_is_taken(&mut change.tx, &place.site, &name).await? {
            return Err(No::new(
                RefusalCode::Name,
                format!(
                    "the name {name} is taken in site {}; choose another",
                    place.site
                ),
            ));
        }
        return Ok(name);
    }
    let base = request.name_from_hostname();
    for n in 1..NAME_TRIES {
        let Some(base) = &base else { break };
        let text = match n {
            1 => base.as_str().to_owned(),
            n => format!("{}-{n}", base.as_str()),
        };
        let Ok(name) = DeviceName::new(&text) else {
            break;
        };
        if !devices::name_is_taken(&mut change.tx, &place.site, &name).await? {
            return Ok(name);
        }
    }
    DeviceName::new(&format!("device-{id}"))
        .map_err(|e| No::new(RefusalCode::Internal, e.to_string()))
}

/// Returns an asker as an approved record describes it.
pub(crate) fn asker_of(record: &PendingRecord) -> Result<Asker, Refusal> {
    let key = csr::parse(&record.csr)
        .map_err(|e| Refusal::bug(format!("a stored request does not read: {e}")))?;
    let introduction_key: X25519Public = record.introduction_key;
    Ok(Asker {
        request: EnrollRequest {
            token: record.token.map(TokenId),
            csr: record.csr.clone(),
            introduction_key,
            signature: None,
            agent_version: String::new(),
            hostname: record.hostname.clone(),
            name: record.name.clone(),
        },
        key,
        source: record
            .source
            .parse()
            .unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    })
}

impl From<No> for Refusal {
    fn from(no: No) -> Self {
        let kind = match no.code {
            RefusalCode::Name | RefusalCode::Key => Kind::Conflict,
            RefusalCode::Busy => Kind::Busy,
            RefusalCode::Internal => Kind::Bug,
            RefusalCode::Malformed
            | RefusalCode::TokenUnknown
            | RefusalCode::TokenExpired
            | RefusalCode::TokenSpent
            | RefusalCode::BadSignature
            | RefusalCode::Rejected => Kind::Invalid,
        };
        Self::new(kind, no.code.as_str(), no.reason, "see the message")
    }
}

#[cfg(test)]
mod tests {
    use hedgerow_model::statement::Ed25519Public;

    use super::*;

    fn token(expires: u64, revoked: Option<u64>) -> TokenRecord {
        TokenRecord {
            id: [1; 8],
            public_key: Ed25519Public([0; 32]),
            site: SiteName::new("s1").unwrap(),
            labels: Labels::default(),
            name: None,
            approve: false,
            uses_max: 1,
            used: 0,
            created: Wall(0),
            created_by: "admin".to_owned(),
            expires: Wall(expires),
            revoked: revoked.map(Wall),
        }
    }

    #[test]
    fn a_token_ends_with_its_time_and_with_its_revocation() {
        let id = TokenId([1; 8]);
        assert!(check_token(&token(10, None), id, Wall(9)).is_ok());
        let expired = check_token(&token(10, None), id, Wall(10)).unwrap_err();
        assert_eq!(expired.code, RefusalCode::TokenExpired);
        assert!(
            expired.reason.contains("hedgerow token create"),
            "{}",
            expired.reason
        );
        let revoked = check_token(&token(10, Some(5)), id, Wall(9)).unwrap_err();
        assert_eq!(revoked.code, RefusalCode::TokenUnknown);
    }

    #[test]
    fn addresses_lie_in_the_sites_prefix_and_follow_the_id() {
        let prefix: IpAddr = "fd00:1:2:3::".parse().unwrap();
        let mut id = [0; 16];
        assert_eq!(
            address_v6(&prefix, DeviceId(id)),
            "fd00:1:2:3::100".parse::<Ipv6Addr>().unwrap()
        );
        id[..8].copy_from_slice(&0x1234_5678_9abc_def0u64.to_be_bytes());
        let address = address_v6(&prefix, DeviceId(id));
        assert_eq!(
            address,
            "fd00:1:2:3:1234:5678:9abc:def0"
                .parse::<Ipv6Addr>()
                .unwrap()
        );
    }
}
