//! The contract of whoever turns a revision into instances, with a fake and a conformance suite.
