//! The truth: functions, immutable revisions, artifacts and secrets, published as whole snapshots.
