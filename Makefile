# What CI runs is `make lint test fuzz features`. Every target is a few cargo calls; the rest is for comfort.
CARGO ?= cargo
# The profile of `quickstart`: `dev`, whose libraries `make test` shares, or `release`.
PROFILE ?= dev
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# Each must compile alone: embedders take single components.
FEATURES := config program store identity link kubeapi dmi mapper mapper-push admission cloudhub cloudstream devicecontroller dynamiccontroller edgecontroller router views cloudviews edgeviews apiserver devicetwin edgehub edgestream servicebus eventbus eventbus-tls embedded-broker kubeletapi metamanager metaserver edged fake-runtime cloud edge standalone test-kit metrics

.DEFAULT_GOAL := help
.PHONY: help build size pods devices scale quickstart layout test sim crash faults powercut mutants fuzz lint features bench docs packages kubectl

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

RELEASE_DIR := $(or $(CARGO_TARGET_DIR),target)/release

# Symbols that say which instance of a generic function they are of: kubeedge-edge/layout/hot.txt has them.
EXACT_NAMES := -C symbol-mangling-version=v0

# One after the other: together they would share the features of their libraries, and edgecore needs few. It has a
# profile of its own, for size, and is put beside cloudcore.
build: packages ## cloudcore and edgecore as they are meant to run: release
	RUSTFLAGS="$(strip $(RUSTFLAGS) $(EXACT_NAMES))" $(CARGO) build --profile edge -p kubeedge-edge --bins
	$(CARGO) build --release -p kubeedge-cloud --bins
	install $(RELEASE_DIR)/../edge/edgecore $(RELEASE_DIR)/edgecore

size: packages build ## edgecore's file and memory, and whether both are below 15 MB
	$(CARGO) run -p kubeedge-examples --bin size -- --programs $(RELEASE_DIR)

# The long forms of what `make test` runs shortly, after the figures: what they find is worth more than a missed figure.
pods: packages build ## what pods take (PODS='--rounds 20'), then pods made again, kills of the runtime and of both programs
	status=0; $(CARGO) run -p kubeedge-examples --bin pods -- --programs $(RELEASE_DIR) $(PODS) || status=1; \
	$(CARGO) build --workspace --all-features --bins --tests && \
	KUBEEDGE_RECREATIONS=100 RUNTIME_KILLS=6 CRASH_SECONDS=$${CRASH_SECONDS:-120} \
	  $(CARGO) test --workspace --all-features --test system -- recreated:: edged:: crash:: && exit $$status

devices: packages build ## what devices cost: updates, answers, changes, and the edge's memory (DEVICES='--seconds 20')
	$(CARGO) build --release -p kubeedge-examples --bin device_load
	$(RELEASE_DIR)/device_load --programs $(RELEASE_DIR) $(DEVICES)

scale: packages build ## what so many nodes cost one cloudcore (NODES=n, SCALE_IDLE and SCALE_TRAFFIC in seconds; root)
	$(CARGO) build --release -p kubeedge-examples --bin scale
	$(RELEASE_DIR)/scale --nodes $(or $(NODES),1000) \
	  --programs $(RELEASE_DIR) --idle $(or $(SCALE_IDLE),60) --traffic $(or $(SCALE_TRAFFIC),600)

layout: packages ## which of edgecore's functions lie side by side in its file, from a run below callgrind (root, valgrind)
	tools/edge-layout

quickstart: packages ## a cloud, an edge node and a pod on this machine (ONCE=1: check and leave)
	$(CARGO) build --profile $(PROFILE) --workspace --all-features --bin cloudcore --bin edgecore --bin quickstart --bin thermostat
	$(TARGET_DIR)/quickstart

# Tests wait more than they compute: two a processor. The programs first: tests run them as processes. Built with the
# tests, they share every dependency with them.
test: export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))
test: packages kubectl ## every test
	$(CARGO) build --workspace --all-features --bins --tests
	$(CARGO) test --workspace --all-features --no-fail-fast

sim: ## the link through faulty histories (SEEDS=100000, or SEED=42 to show one)
	SIM_SEED=$(SEED) SIM_SEEDS=$(SEEDS) $(CARGO) test -p kubeedge-actors --all-features --test it -- sim:: --nocapture

crash: packages ## both programs killed at random for two minutes (CRASH_SECONDS=n, CRASH_SEED=n)
	$(CARGO) build --workspace --all-features --bins --tests
	CRASH_SECONDS=$${CRASH_SECONDS:-120} $(CARGO) test --workspace --all-features --test system -- crash::

faults: ## lines and processes broken in every way for two minutes and more (FAULTS_SECONDS=n, FAULTS_SEED=n; root)
	$(CARGO) build --workspace --all-features --bins --tests
	FAULTS_SECONDS=$${FAULTS_SECONDS:-210} $(CARGO) test --workspace --all-features --test system -- faults:: scale::

powercut: ## the power of both stores cut again and again (POWER_CUTS=n; root and loop devices)
	POWER_CUTS=$${POWER_CUTS:-48} $(CARGO) test -p kubeedge-actors --all-features --lib -- power_cut --nocapture

mutants: ## break one promise after the other: each one's test has to fail (PROMISES='part ...')
	tools/mutants/run $(PROMISES)

# Coverage for libFuzzer is a pass of LLVM, which a stable toolchain has as well; `cargo fuzz` passes the same flags.
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_DIR = $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/fuzz
FUZZ_SECONDS ?= 60
TARGETS ?= frame inventory token csr config

# What is found on the way stays in the build folder; a finding is written to kubeedge-actors/fuzz/artifacts.
fuzz: packages ## the fuzz targets, two at a time, each for FUZZ_SECONDS=n (TARGETS="frame ..." chooses)
	cd kubeedge-actors/fuzz && RUSTFLAGS="$(FUZZ_FLAGS)" CARGO_TARGET_DIR=$(FUZZ_DIR) \
	  $(CARGO) build --release --locked --bins --target $(FUZZ_HOST)
	mkdir -p kubeedge-actors/fuzz/artifacts $(addprefix $(FUZZ_DIR)/found/,$(TARGETS))
	printf '%s\n' $(TARGETS) | xargs -P 2 -I TARGET sh -c '$(FUZZ_DIR)/$(FUZZ_HOST)/release/TARGET \
	  -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 -max_len=65536 -print_final_stats=1 \
	  -artifact_prefix=kubeedge-actors/fuzz/artifacts/TARGET- $(FUZZ_DIR)/found/TARGET \
	  kubeedge-actors/fuzz/corpus/TARGET >$(FUZZ_DIR)/TARGET.log 2>&1 && \
	  echo "TARGET: $$(grep ^Done $(FUZZ_DIR)/TARGET.log), nothing found" || { tail -n 60 $(FUZZ_DIR)/TARGET.log; exit 1; }'

lint: packages ## format, clippy, links in the docs, licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --all-features
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --all-features check bans licenses sources; \
	else echo "cargo-deny is not installed: bans, licences and sources were not checked"; fi

features: packages ## kubeedge-actors compiles without any feature, and with each alone (FEATURES="..." chooses)
	$(CARGO) check -p kubeedge-actors --no-default-features
	for feature in $(FEATURES); do \
	  $(CARGO) check -p kubeedge-actors --no-default-features --features $$feature || exit 1; done

bench: packages ## the benchmarks, and how their ratios compare with the committed ones
	$(CARGO) bench -p kubeedge-benches
	$(CARGO) run --release -p kubeedge-benches --bin ratios

docs: ## the API documentation, opened in a browser
	$(CARGO) doc --workspace --no-deps --all-features --open

packages: ## what containers need (containerd, runc, CNI plugins, ...), and pip
	tools/install-packages

kubectl: packages ## the two versions of kubectl that the tests use
	tools/install-kubectl
