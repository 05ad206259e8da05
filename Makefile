# `make help` says what there is.
.DEFAULT_GOAL := help
.PHONY: help run build test test-browser faults soak fuzz conformance deploy-check bench bench-peers image

PRESET ?=
ARGS ?=

help: ## This list
	@echo 'corecast: a WebSocket fan-out server for Linux'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'
	@echo
	@echo 'Variables: PRESET=event-fanout  ARGS="--listen 127.0.0.1:9000 --shards 2"'
	@echo 'One step of the tests alone: scripts/test.sh lint'
	@echo 'Scripts: start.sh (workflow); run_clients.sh, stop_clients.sh, run_loadtest.sh (broadcaster)'
	@echo 'Coming from another system: docs/coming-from-NAME.md'

run: build ## Build and start the server (PRESET=NAME, ARGS="flags of corecast serve")
	@exec $${CARGO_TARGET_DIR:-target}/release/corecast serve $(if $(PRESET),--preset $(PRESET)) $(ARGS)

build: ## Build the release binary
	@command -v cargo >/dev/null || { echo 'make: cargo is not on PATH: install Rust (rustup.rs, or your distribution)'; exit 1; }
	cargo build --locked --release -p corecast

test: ## Format, lint, purity, deploy files, unit tests, the JavaScript client, loom model, end-to-end tests
	@exec scripts/test.sh

test-browser: ## The JavaScript client in a real Chromium: Debian's, installed where there is none and it can be
	@exec scripts/test.sh build browser

faults: ## What each fault of Redis costs 20 clients at 100 messages a second: the table of docs/FAULTS.md
	@exec scripts/test.sh build faults

fuzz: ## New inputs for every parser by libFuzzer (TARGET="session resp" FOR=10m); cargo test replays fuzz/corpus
	@FOR=$(or $(FOR),60s) scripts/fuzz.sh $(TARGET)

soak: ## The seeded model of relay, shards and Redis for as long as you like (FOR=10m); a failing seed replays
	@CORECAST_MODEL_FOR=$$(( $$(printf %s '$(or $(FOR),10m)' | sed 's/h$$/*3600/; s/m$$/*60/; s/s$$//') )) \
	  cargo test --locked --release -p shards --test model -- --nocapture

conformance: build ## The Autobahn suite on each driver, two minutes, into docs/CONFORMANCE.md (ARGS="7.*" for some cases)
	@scripts/conformance.sh $(ARGS)

deploy-check: ## Check what is in deploy/, the Dockerfile, the workflow and the scripts
	@exec scripts/test.sh deploy

bench: build ## Measure what README promises, in about two minutes (ARGS="another command of corecast-bench")
	cargo build --locked --release -p corecast-bench
	@exec $${CARGO_TARGET_DIR:-target}/release/corecast-bench $(or $(ARGS),table)

bench-peers: ## The same beside other servers in one run, some twenty minutes (ARGS="flags of corecast-bench versus")
	@scripts/bench_peers.sh $(ARGS)

image: ## Build the Docker image corecast
	docker build -t corecast .
