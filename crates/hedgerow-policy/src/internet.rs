//! The underlay address space; `hedgerow_model::internet` says what of it is the internet.

use hedgerow_model::address::Prefix;
pub(crate) use hedgerow_model::internet::local_prefixes;

/// Returns the whole address space, as the two prefixes that hold it.
pub(crate) fn whole() -> impl Iterator<Item = Prefix> {
    ["0.0.0.0/0", "::/0"]
        .iter()
        .filter_map(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_parses() {
        assert_eq!(whole().count(), 2);
    }
}
