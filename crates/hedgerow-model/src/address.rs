//! Inner and outer addresses, which are different types.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

use crate::id::{Digest, NameError};

/// An inner address: inside the mesh, proven by a ticket, therefore an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Overlay(pub IpAddr);

/// An outer address and port: where datagrams are sent, proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Underlay(pub SocketAddr);

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Underlay {
    /// Returns whether it leads to this machine: as a way to a peer it is then a link, behind which somebody
    /// here passes datagrams on.
    pub fn is_loopback(&self) -> bool {
        self.0.ip().to_canonical().is_loopback()
    }
}

impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A device's overlay addresses. IPv6 is always there; IPv4 for applications that need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OverlayAddresses {
    /// Inside the site's /64 of the trust domain's /48.
    pub v6: Ipv6Addr,
    /// Inside one of the site's /22 or larger pools.
    pub v4: Option<Ipv4Addr>,
}

impl OverlayAddresses {
    /// Returns whether `address` is one of them.
    pub fn contains(&self, address: Overlay) -> bool {
        self.iter().any(|a| a == address)
    }

    /// Visits them, IPv6 first.
    pub fn iter(&self) -> impl Iterator<Item = Overlay> {
        let v6 = Some(Overlay(self.v6.into()));
        v6.into_iter().chain(self.v4.map(|a| Overlay(a.into())))
    }
}

/// An address range by prefix, e.g. `10.0.0.0/8`. Host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

impl Prefix {
    /// Makes the prefix of `bits` length that begins at `address`.
    ///
    /// # Errors
    ///
    /// When `bits` is too large for the family, or host bits are set.
    pub fn new(address: IpAddr, bits: u8) -> Result<Self, NameError> {
        let width = if address.is_ipv4() { 32 } else { 128 };
        let err = |rule| NameError {
            what: "prefix",
            text: format!("{address}/{bits}"),
            rule,
        };
        if bits > width {
            return Err(err("the length takes 0 to 32 for IPv4, 0 to 128 for IPv6"));
        }
        let prefix = Self { address, bits };
        if prefix.mask(address) != address {
            return Err(err("host bits must be zero"));
        }
        Ok(prefix)
    }

    /// Returns the first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns the length in bits.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Returns whether `address` lies inside; another family never does.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && self.mask(address) == self.address
    }

    /// Returns whether any address lies in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    fn mask(&self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(a) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(self.bits.min(32)))
                    .unwrap_or(0);
                Ipv4Addr::from(u32::from(a) & mask).into()
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.bits.min(128)))
                    .unwrap_or(0);
                Ipv6Addr::from(u128::from(a) & mask).into()
            }
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Prefix {
    type Err = NameError;
    /// Reads `address/bits`; an address alone is itself only.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let err = || NameError {
            what: "prefix",
            text: text.to_owned(),
            rule: "write address/length, e.g. 10.0.0.0/8 or fd00::/8",
        };
        let (address, bits) = match text.split_once('/') {
            Some((a, b)) => (a, Some(b)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_e| err())?;
        let bits = match bits {
            Some(b) => b.parse().map_err(|_e| err())?,
            None if address.is_ipv4() => 32,
            None => 128,
        };
        Self::new(address, bits)
    }
}

/// Returns the trust domain's IPv6 /48: `fd` and the first 40 bits of the genesis root set's hash.
pub fn domain_prefix(genesis: &Digest) -> Prefix {
    let mut octets = [0u8; 16];
    for (slot, byte) in octets
        .iter_mut()
        .zip(std::iter::once(&0xfd).chain(&genesis.0).take(6))
    {
        *slot = *byte;
    }
    Prefix {
        address: Ipv6Addr::from(octets).into(),
        bits: 48,
    }
}

/// Returns the /64 of site number `site` in the trust domain's /48.
pub fn site_prefix(domain: &Prefix, site: u16) -> Prefix {
    let base = match domain.address {
        IpAddr::V6(a) => u128::from(a),
        IpAddr::V4(_) => 0,
    };
    Prefix {
        address: Ipv6Addr::from(base | (u128::from(site) << 64)).into(),
        bits: 64,
    }
}

/// Writes an address as its 4 or 16 bytes; use with `#[cbor(with = "…")]`.
pub mod cbor_ip {
    use super::*;

    /// Encodes as a byte string of 4 or 16.
    ///
    /// # Errors
    ///
    /// When the writer fails.
    pub fn encode<C, W: encode::Write>(
        v: &IpAddr,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        match v {
            IpAddr::V4(a) => e.bytes(&a.octets())?.ok(),
            IpAddr::V6(a) => e.bytes(&a.octets())?.ok(),
        }
    }

    /// Decodes 4 or 16 bytes.
    ///
    /// # Errors
    ///
    /// For any other length.
    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<IpAddr, decode::Error> {
        let bytes = d.bytes()?;
        if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
            return Ok(Ipv4Addr::from(v4).into());
        }
        <[u8; 16]>::try_from(bytes)
            .map(|v6| Ipv6Addr::from(v6).into())
            .map_err(|_e| decode::Error::message("an address takes 4 or 16 bytes"))
    }
}

impl<C> Encode<C> for Overlay {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        cbor_ip::encode(&self.0, e, ctx)
    }
}

impl<'b, C> Decode<'b, C> for Overlay {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        cbor_ip::decode(d, ctx).map(Self)
    }
}

impl<C> Encode<C> for Underlay {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?;
        cbor_ip::encode(&self.0.ip(), e, ctx)?;
        e.u16(self.0.port())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Underlay {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        pair(d)?;
        let ip = cbor_ip::decode(d, ctx)?;
        Ok(Self(SocketAddr::new(ip, d.u16()?)))
    }
}

impl<C> Encode<C> for Prefix {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?;
        cbor_ip::encode(&self.address, e, ctx)?;
        e.u8(self.bits)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Prefix {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        pair(d)?;
        let address = cbor_ip::decode(d, ctx)?;
        Self::new(address, d.u8()?).map_err(decode::Error::message)
    }
}

impl<C> Encode<C> for OverlayAddresses {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(if self.v4.is_some() { 2 } else { 1 })?;
        self.iter().try_for_each(|a| a.encode(e, ctx))
    }
}

impl<'b, C> Decode<'b, C> for OverlayAddresses {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        let bad = || decode::Error::message("overlay addresses take one IPv6 and at most one IPv4");
        let n = d.array()?.filter(|n| (1..=2).contains(n)).ok_or_else(bad)?;
        let IpAddr::V6(v6) = cbor_ip::decode(d, ctx)? else {
            return Err(bad());
        };
        let v4 = match n {
            1 => None,
            _ => match cbor_ip::decode(d, ctx)? {
                IpAddr::V4(a) => Some(a),
                IpAddr::V6(_) => return Err(bad()),
            },
        };
        Ok(Self { v6, v4 })
    }
}

fn pair(d: &mut Decoder<'_>) -> Result<(), decode::Error> {
    match d.array()? {
        Some(2) => Ok(()),
        _ => Err(decode::Error::message("expected an array of two")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_contain_their_own_and_refuse_host_bits() {
        let p: Prefix = "100.80.0.0/12".parse().unwrap();
        assert!(p.contains("100.95.255.255".parse().unwrap()));
        assert!(!p.contains("100.96.0.0".parse().unwrap()));
        assert!("10.0.0.1/8".parse::<Prefix>().is_err());
        assert!("10.0.0.0/33".parse::<Prefix>().is_err());
        assert!(
            "0.0.0.0/0"
                .parse::<Prefix>()
                .unwrap()
                .contains("8.8.8.8".parse().unwrap())
        );
        assert!(
            !"::/0"
                .parse::<Prefix>()
                .unwrap()
                .contains("8.8.8.8".parse().unwrap())
        );
    }

    #[test]
    fn sites_lie_inside_their_domain() {
        let domain = domain_prefix(&Digest::of(b"roots"));
        assert_eq!(domain.bits(), 48);
        let site = site_prefix(&domain, 0xffff);
        assert!(domain.overlaps(&site) && domain.contains(site.address()));
        assert!(!site.overlaps(&site_prefix(&domain, 1)));
    }
}
