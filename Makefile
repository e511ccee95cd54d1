# `make demo` and `make test` work on a fresh clone: they install what is missing first.

TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo test drivers bench-load bench fmt clean

help:
	@echo 'make demo         three tenants on three throwaway PostgreSQL instances; ARGS=--once ends after the proof'
	@echo 'make test         formatting, lints, unit, integration and driver tests, documentation'
	@echo 'make bench        microbenchmarks (criterion)'
	@echo 'make bench-load   pgbench against PostgreSQL, PgBouncer and pgtenant; ARGS=--help lists the options'
	@echo 'make fmt          format the code'
	@echo 'make clean        remove everything that was built'

demo:
	@scripts/setup.sh demo
	cargo build --release
	@$(TARGET)/release/pgtenant demo $(ARGS)

test: drivers
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	@if cargo nextest --version >/dev/null 2>&1; then set -x; cargo nextest run; else set -x; cargo test; fi
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

# What the integration tests run beside the proxy: the driver programs and PostgreSQL 18.
drivers:
	@scripts/setup.sh test
	@tests/drivers/setup.sh
	@tests/postgres18.sh

bench-load:
	@scripts/setup.sh bench
	cargo build --release
	python3 -B benches/load/run.py --pgtenant $(TARGET)/release/pgtenant $(ARGS)

bench:
	cargo bench $(ARGS)

fmt:
	cargo fmt

clean:
	cargo clean
	rm -rf target/drivers target/postgres18 target/bench-load
