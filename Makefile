# What CI runs is `make lint test`. Every target is a few cargo calls; the rest is for comfort.
CARGO ?= cargo
# The profile of `quickstart` and `build`: `release`, or `dev` to use what `make test` has built.
PROFILE ?= release
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# Each must compile alone: embedders take single components.
FEATURES := config program store identity link cloudhub edgecontroller apiserver edgehub metamanager edged cloud edge standalone

.DEFAULT_GOAL := help
.PHONY: help build quickstart test crash mutants lint features bench docs packages

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## cloudcore, edgecore and the examples (PROFILE=release|dev)
	$(CARGO) build --profile $(PROFILE) -p kubeedge-cloud -p kubeedge-edge -p kubeedge-examples --bins

quickstart: packages build ## a cloud, an edge node and a pod on this machine (ONCE=1: check and leave)
	$(TARGET_DIR)/quickstart

# The programs first: tests run them as processes. Built with the tests, they share every dependency with them.
test: packages ## every test
	$(CARGO) build --workspace --all-features --bins --tests
	$(CARGO) test --workspace --all-features

crash: packages ## both programs killed at random for two minutes (CRASH_SECONDS=n, CRASH_SEED=n)
	$(CARGO) build --workspace --all-features --bins --tests
	CRASH_SECONDS=$${CRASH_SECONDS:-120} $(CARGO) test --workspace --all-features --test system -- crash::

mutants: ## break one promise after the other: each one's test has to fail (PROMISES='part ...')
	tools/mutants/run $(PROMISES)

lint: ## format, clippy, links in the docs, licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --all-features
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --all-features check bans licenses sources; \
	else echo "cargo-deny is not installed: bans, licences and sources were not checked"; fi

features: ## each cargo feature of kubeedge-actors compiles alone
	for feature in $(FEATURES); do \
	  $(CARGO) check -p kubeedge-actors --no-default-features --features $$feature || exit 1; done

bench: ## the benchmarks
	$(CARGO) bench -p kubeedge-benches

docs: ## the API documentation, opened in a browser
	$(CARGO) doc --workspace --no-deps --all-features --open

packages: ## what containers need: containerd, runc, CNI plugins, busybox, iptables, iproute2
	tools/install-packages
