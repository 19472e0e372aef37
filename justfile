# The project's chores, one line each. `just --list` shows them.

default:
    @just --list --unsorted

# Everything CI asks for
ci:
    bash .ci/run

# All tests
test:
    cargo test --workspace

# Style: formatting, lints, documentation
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Our figures beside their floors and peers; writes docs/performance.md
bench *ARGS:
    cargo run --release -p taper-bench -- {{ARGS}}

# Each fuzz target for some seconds
fuzz SECONDS="10":
    bash fuzz/run {{SECONDS}}
