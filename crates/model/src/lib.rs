//! The nouns of Taper: names, functions, revisions, calls, faults, demand.
