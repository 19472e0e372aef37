//! Pure scaling decisions: how many instances a revision should have, and why.
