# `make demo` and `make test` work on a fresh clone: they install what is missing first.

TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo test postgres18 drivers migrations bundles suites bench-load bench-neighbours bench instructions fmt clean

help:
	@echo 'make demo         three tenants on three throwaway PostgreSQL instances; ARGS=--once ends after the proof'
	@echo 'make test         formatting, lints, unit, integration and driver tests, instructions of the relay, documentation'
	@echo 'make migrations   two hundred tenants on two instances, migrated through locks, drift and a killed instance'
	@echo 'make bundles      a million rows exported from PostgreSQL 15, imported into 18 and compared, plain and encrypted'
	@echo 'make suites       test suites of PostgreSQL and others through pgtenant; ARGS="regress --mode session" is some'
	@echo 'make bench        microbenchmarks (criterion)'
	@echo 'make instructions whether the relay takes more instructions for a recorded conversation than before'
	@echo 'make bench-load   the cost of a transaction beside PgBouncer and others; ARGS=--help lists the options'
	@echo 'make bench-neighbours  what calm tenants notice of a greedy one, with fairness, without, and through PgBouncer'
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
	python3 -B benches/instructions/check.py --test
	@$(MAKE) --no-print-directory postgres18
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

# What depends most on the server's version, once more with PostgreSQL 18 where it could be had, and through epoll: all other
# tests use io_uring where the kernel has it.
postgres18:
	@if [ -x target/postgres18/bin/postgres ]; then set -x; \
	PGTENANT__LISTEN__ENGINE=epoll PGTENANT_TEST_BIN_DIR=$(CURDIR)/target/postgres18/bin \
	cargo test -q --test it -- relay:: prepared:: copy:: cancel:: state:: startup::; \
	else echo 'PostgreSQL 18 is not here: its tests are left out'; fi

# What the integration tests run beside the proxy: the driver programs and PostgreSQL 18.
drivers:
	@scripts/setup.sh test
	@tests/drivers/setup.sh
	@tests/postgres18.sh

migrations:
	@scripts/setup.sh test
	@tests/postgres18.sh
	cargo test --test it -- --ignored --nocapture migrate_fleet::

bundles:
	@scripts/setup.sh test
	@tests/postgres18.sh
	cargo test --test it -- --ignored --nocapture bundle_million::

suites:
	@scripts/setup.sh suites
	cargo build --release
	python3 -B tests/suites/run.py --pgtenant $(TARGET)/release/pgtenant $(ARGS)

bench-load:
	@scripts/setup.sh bench
	@scripts/pgbouncer.sh
	cargo build --profile dist
	python3 -B benches/load/run.py --pgtenant $(TARGET)/dist/pgtenant $(ARGS)

bench-neighbours:
	@scripts/setup.sh bench
	@scripts/pgbouncer.sh
	cargo build --profile dist
	python3 -B benches/load/neighbours.py --pgtenant $(TARGET)/dist/pgtenant $(ARGS)

bench:
	cargo bench $(ARGS)

instructions:
	@scripts/setup.sh instructions
	python3 -B benches/instructions/check.py $(ARGS)

fmt:
	cargo fmt

clean:
	cargo clean
	rm -rf target/drivers target/postgres18 target/suites target/bench-load target/pgbouncer
