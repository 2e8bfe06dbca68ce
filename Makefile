# Luna's commands. `make demo` and `make test` do all their set-up on a fresh Debian machine as root.
#
#   make demo     the whole story on this machine: one LUN, three hosts, a virtual machine that moves
#   make test     everything CI runs: lints, unit tests, simulator, real mounts, documentation
#   make bench    numbers beside the bare LUN and the bare FUSE door
#   make lint     format, clippy, docs; make fix repairs what can be repaired by a machine
SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin
.PHONY: demo test bench soak rounds model-large fuzz lint fix build deny setup-% install

setup-%:
	@tests/setup.sh $*

build: setup-build
	cargo build -p luna

demo: setup-demo
	cargo build --release -p luna
	./target/release/luna demo $(DEMO)

lint: setup-build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

fix: setup-build
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged

# Tests of real processes find the binary through LUNA_BIN.
test: setup-test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo build --locked -p luna
	LUNA_BIN=$(CURDIR)/target/debug/luna cargo nextest run --workspace --locked --no-fail-fast
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked -q
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --offline check bans licenses sources; else echo "cargo-deny is not installed: skipped (make deny installs it)"; fi

# Advisories too, which are fetched (the test above checks bans, licences and sources without a network). Building the tool takes minutes, so it is a target of its own.
deny: setup-build
	cargo deny --version >/dev/null 2>&1 || cargo install cargo-deny --locked
	cargo deny check

bench: setup-bench
	cargo build --release -p luna -p luna-bench
	LUNA_BIN=$(CURDIR)/target/release/luna cargo run --release -q -p luna-bench

# Hours of virtual machines, small files and faults on three hosts, everything verified (docs/testing.md). Fractions of an hour are fine.
HOURS ?= 1
soak: setup-build
	cargo build --release --locked -p luna -p luna-tests
	LUNA_BIN=$(CURDIR)/target/release/luna ./target/release/luna-soak --hours $(HOURS) $(SOAK)

# The tests of real processes again and again, until one fails or ROUNDS are done.
ROUNDS ?= 20
rounds: setup-test
	cargo build --locked -p luna
	for i in $$(seq $(ROUNDS)); do echo "round $$i"; LUNA_BIN=$(CURDIR)/target/debug/luna cargo nextest run -p luna-tests --locked || exit 1; done

# The models of the protocol at larger sizes (the small ones are in test). A minute and a few gigabytes.
model-large: setup-build
	cargo run --release --locked -q -p luna-model -- --large

# Coverage-guided fuzzing of one target for so many minutes, on stable Rust; docs/testing.md lists the targets. What is found lies in
# target/fuzz/found. The instrumented build has a folder of its own, so that it does not disturb any other.
TARGET ?= mount
MINUTES ?= 10
FUZZ_HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
FUZZ_BIN := target/fuzz/$(FUZZ_HOST)/release/luna-fuzz
FUZZ_FLAGS := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 \
	-Cdebug-assertions=on -Coverflow-checks=on
fuzz: setup-build
	RUSTFLAGS="$(FUZZ_FLAGS)" CXX=g++ CARGO_TARGET_DIR=target/fuzz cargo build --locked --release -p luna-fuzz --features libfuzzer \
		--bin luna-fuzz --target $(FUZZ_HOST)
	mkdir -p target/fuzz/found target/fuzz/corpus/$(TARGET) fuzz/corpus/$(TARGET)
	cargo run -q --locked -p luna-fuzz --bin seeds -- $(TARGET) target/fuzz/corpus/$(TARGET)
	LUNA_FUZZ=$(TARGET) $(FUZZ_BIN) -max_total_time=$$(($(MINUTES) * 60)) -max_len=$(if $(filter block wire handshake members locks nbd-% control,$(TARGET)),4096,256) -timeout=30 -rss_limit_mb=2048 \
		-malloc_limit_mb=512 -print_final_stats=1 -artifact_prefix=target/fuzz/found/$(TARGET)- \
		target/fuzz/corpus/$(TARGET) fuzz/corpus/$(TARGET)

# Puts the binary, its helper links for mount(8), mkfs(8) and fsck(8), and the man pages below PREFIX.
PREFIX ?= /usr/local
install: setup-build
	cargo build --release --locked -p luna
	install -D target/release/luna $(DESTDIR)$(PREFIX)/sbin/luna
	for name in mkfs.luna fsck.luna mount.luna; do ln -sf luna $(DESTDIR)$(PREFIX)/sbin/$$name; done
	install -d $(DESTDIR)/sbin
	if [ -z "$(DESTDIR)" ]; then for name in mkfs.luna fsck.luna mount.luna; do ln -sf $(PREFIX)/sbin/luna /sbin/$$name; done; fi
	install -d $(DESTDIR)$(PREFIX)/share/man/man8
	target/release/luna man $(DESTDIR)$(PREFIX)/share/man/man8
