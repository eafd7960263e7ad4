//! Fingerprints of keys that two people compare by reading them to each other.

use hedgerow_model::base32;
use hedgerow_model::id::Digest;

/// Returns the fingerprint of a SubjectPublicKeyInfo, DER: 8 groups of 4 characters, which are the
/// first 160 bits of its SHA-256.
pub fn fingerprint(spki: &[u8]) -> String {
    fingerprint_of(&Digest::of(spki))
}

/// Returns the fingerprint of a key whose SubjectPublicKeyInfo has this digest.
pub fn fingerprint_of(spki: &Digest) -> String {
    let text: Vec<char> = base32::encode(&spki.0).chars().take(32).collect();
    let groups: Vec<String> = text.chunks(4).map(|group| group.iter().collect()).collect();
    groups.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_eight_groups_of_four() {
        let text = fingerprint(b"key");
        assert_eq!(text.len(), 39);
        assert!(text.split('-').all(|group| group.len() == 4));
        assert_ne!(text, fingerprint(b"kez"));
    }
}
