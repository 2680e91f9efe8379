# Lists the commands.
default:
    @just --list

# The gate, as CI runs it.
ci:
    .ci/run

fmt:
    cargo fmt --all

lint:
    cargo clippy --workspace --all-targets -- -D warnings

test:
    cargo test --workspace

deny:
    cargo deny check

demo *ARGS:
    cargo run --release -- demo {{ARGS}}

# Weft beside HAProxy, nginx and Envoy (tests/bench/PEERS.md).
bench-peers *ARGS:
    python3 tests/bench/peers {{ARGS}}

# A whole mesh under load while its certificates live for ten seconds, an identity is revoked and the root changes.
rotation SECONDS="600":
    WEFT_ROTATION_SECONDS={{SECONDS}} cargo test --workspace --test it rotation::whole -- --nocapture
