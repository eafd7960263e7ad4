//! Hedgerow.
