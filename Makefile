# Needs cargo and nothing else: scripts/engines finds Redis and Postgres, or starts its own.
# Say ENGINES=private to keep away from servers that run on this machine.

INSTANCES ?= 1
PORT ?= 8080
TRACE ?=
TARGET ?=
SECONDS ?=
ARGS ?=
JSON ?=
# In the recipes below `exec` leaves no shell between make and the script: a TERM sent to make must reach it.
perto = "$${CARGO_TARGET_DIR:-target}/release/perto"

.PHONY: help run test api dashboard prove mutants soak chaos attack rolling fuzz replay bench bench-peers instructions check prose compose-check kubernetes-check upgrades rolling-restart release cargo

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1	/p' Makefile | while IFS='	' read -r target text; do printf '  make %-16s %s\n' "$$target" "$$text"; done

run: cargo ## the service on http://127.0.0.1:8080/ [INSTANCES=3] [PORT=8080]
	@INSTANCES='$(INSTANCES)' PORT='$(PORT)' exec scripts/run

test: cargo ## all tests [ARGS='name_of_a_test']
	@exec scripts/engines exec --db perto_test --binaries -- cargo test --locked --workspace $(ARGS)

api: cargo ## whatever the API's description allows, and what it doesn't [SECONDS=300]
	@exec scripts/engines exec --db perto_api -- scripts/api '$(or $(SECONDS),300)'

dashboard: cargo ## the dashboard in a headless browser, with faults; pictures in target/dashboard/ (needs Node and npm)
	@exec scripts/engines exec --db perto_dashboard --binaries -- scripts/dashboard

prove: cargo ## larger scopes of the model [ARGS='trim-two'], or a counterexample [ARGS='NaiveJoin']
	@cargo run --locked --quiet --package perto-proofs -- $(ARGS)

fuzz: cargo ## garbage for what reads from outside [TARGET=stored] [SECONDS=60]
	@exec scripts/fuzz '$(or $(SECONDS),60)' $(TARGET)

replay: cargo ## a recorded access trace through the cache [TRACE=FILE] [ARGS='...']
	@cargo build --release --locked --package perto-cli
	@exec scripts/engines exec --db perto_replay -- $(perto) replay $(if $(TRACE),"$(TRACE)") $(ARGS)

soak: cargo ## random simulated histories for an hour [SECONDS=3600]
	@PERTO_SOAK_SECONDS='$(or $(SECONDS),3600)' exec cargo test --release --locked --test coherence soak -- --ignored --nocapture

mutants: cargo ## break each rule of the code, and see which test turns red [ARGS='accept-everything']
	@exec scripts/mutants $(ARGS)

chaos: cargo ## every fault under load, on the engines of this machine and on the newest [ARGS='--only redis']
	@cargo test --release --locked --no-run --test chaos
	@exec scripts/engines programs -- cargo test --release --locked --test chaos -- run $(ARGS)
	@exec scripts/engines programs --wheels -- cargo test --release --locked --test chaos -- run $(ARGS)

attack: cargo ## what strangers, tenants and an ill Redis can do to three instances [ARGS='--only forged']
	@cargo test --release --locked --no-run --package perto-chat --test attack
	@exec scripts/engines exec --db perto_attack --binaries -- cargo test --release --locked --package perto-chat --test attack -- run $(ARGS)

rolling: cargo ## the release before beside this one: upgraded and rolled back one by one, under load and faults
	@exec scripts/rolling

bench: cargo ## benchmarks [ARGS='...'] [JSON=FILE, for a line of each ratio with its samples]
	@BENCH_JSON='$(abspath $(JSON))' exec scripts/engines exec --db perto_bench -- \
	  cargo bench --locked --workspace --features perto/test-util --profile dist $(ARGS)

instructions: cargo ## what each path costs in instructions and allocations, by valgrind
	@BENCH_JSON='$(abspath $(JSON))' exec scripts/instructions $(ARGS)

bench-peers: cargo ## beside other caches for Rust [ARGS='--only l1,stale'] [JSON=FILE]
	@cargo build --release --locked --manifest-path benches/peers/Cargo.toml
	@BENCH_JSON='$(abspath $(JSON))' exec scripts/engines exec --db perto_peers -- "$${CARGO_TARGET_DIR:-benches/peers/target}/release/perto-peers" $(ARGS)

check: cargo ## format, lints, features, docs, alerts and prose, as CI does
	@exec .ci/run format lints features docs alerts prose

prose: ## sentences over 35 words in the documents; fails when a file has more than its budget
	@exec scripts/prose

compose-check: cargo ## docker-compose.yml for real, by podman: as root, on Debian
	@exec scripts/compose-check

kubernetes-check: cargo ## the manifests of deploy/kubernetes, validated, and run by podman: as root, on Debian
	@exec scripts/kubernetes-check

upgrades: cargo ## Postgres to a new major in each way, and Redis to Valkey, with instances that live through it [ARGS='dump logical']
	@exec scripts/upgrades $(ARGS)

rolling-restart: cargo ## three instances restarted behind HAProxy, under load [ARGS='1000 3']
	@exec scripts/rolling-restart $(ARGS)

release: cargo ## all that must hold before a version is published; publishes nothing [ARGS='packages documents']
	@exec scripts/release $(ARGS)

cargo:
	@command -v cargo >/dev/null || { echo "cargo is not on PATH: install Rust by https://rustup.rs, open a new shell and try again" >&2; exit 1; }
