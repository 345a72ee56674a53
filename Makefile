# Everything a developer types. `make demo` and `make test` install what is missing, or say the one line that does.

CARGO ?= cargo
PYTHON ?= python3

.PHONY: demo test bench compare faults model lint deny servers readers older linters packages book deb package publish-check

demo: servers
	$(CARGO) run --release --locked --quiet -- demo $(DEMO)

test: servers readers older linters
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --locked --workspace && $(CARGO) test --locked --workspace --doc; \
	else \
		$(CARGO) test --locked --workspace; \
	fi

bench: servers
	$(CARGO) build --release --locked
	$(CARGO) bench --locked --bench warm
	$(CARGO) bench --locked --bench feed
	$(CARGO) bench --locked --bench streams
	$(CARGO) bench --locked --bench failover
	$(CARGO) bench --locked --bench client
	$(CARGO) bench --locked --bench locks
	$(CARGO) bench --locked --bench writes

# Beside Debezium with a plain sink (docs/comparison.md): some 15 minutes; COMPARE="--quick" for one short round.
compare: servers
	@benches/debezium/install
	$(CARGO) build --release --locked
	target/compare/bin/python benches/debezium/compare.py $(COMPARE)

# Some 600 faults against real servers, one by one and in pairs: directly, through proxies and a pooler, with replicas, between
# workers of an earlier commit and of this one, and on two clusters. CACHEKEEPER_SEED=n repeats a run.
faults: servers older
	CACHEKEEPER_FAULTS=$${CACHEKEEPER_FAULTS:-320} $(CARGO) test --locked --test it oracle::no_fault -- --nocapture
	CACHEKEEPER_FAULTS=$${CACHEKEEPER_FAULTS:-50} $(CARGO) test --locked --test it oracle::network -- --nocapture
	CACHEKEEPER_FAULTS=$${CACHEKEEPER_FAULTS:-100} $(CARGO) test --locked --test it near_bound:: -- --nocapture
	CACHEKEEPER_FAULTS=$${CACHEKEEPER_FAULTS:-30} $(CARGO) test --locked --test it oracle::replicas -- --nocapture
	CACHEKEEPER_FAULTS=$${CACHEKEEPER_FAULTS:-16} $(CARGO) test --locked --test it oracle::upgrade -- --nocapture
	CACHEKEEPER_FAULTS=$${CACHEKEEPER_FAULTS:-80} $(CARGO) test --locked --test it oracle::cluster::no_fault_of_a_cluster -- --nocapture
	CACHEKEEPER_FAULTS=$${CACHEKEEPER_FAULTS:-40} $(CARGO) test --locked --test it oracle::cluster::no_fault_of_a_larger -- --nocapture

# The large worlds of the formal model; the small ones are part of `make test`.
model:
	$(CARGO) test --release --locked -p cachekeeper-model -- --ignored

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p cachekeeper-client --no-default-features -- -D warnings
	$(CARGO) clippy --locked --features otlp -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items
	@$(MAKE) --no-print-directory deny packages

# What the worker is installed with: the unit, the Dockerfile, the compose file, the Helm chart, and what stands in two places.
LINTERS := target/deploy/python/bin/python
linters:
	@deploy/install-linters
packages: linters
	@if [ -x $(LINTERS) ]; then $(LINTERS) deploy/lint; else $(PYTHON) deploy/lint; fi

# The documents as a book with a search, each link followed: target/book/html. Without mdBook it is built once, which takes minutes.
MDBOOK_VERSION := 0.5.2
book: export PATH := $(CURDIR)/target/tools/bin:$(PATH)
book:
	@mdbook --version >/dev/null 2>&1 || \
		$(CARGO) install mdbook --version $(MDBOOK_VERSION) --locked --debug --root target/tools
	@$(PYTHON) deploy/book/build mdbook

# The Debian package, with the list of what is compiled in; then what lintian and the schema of CycloneDX say of both.
deb: linters
	$(CARGO) build --release --locked --features otlp
	deploy/debian/build
	@if command -v lintian >/dev/null; then lintian --fail-on error,warning target/debian/*.deb; \
	else echo "lintian: not there, so the package is not linted"; fi
	@if [ -x $(LINTERS) ]; then $(LINTERS) deploy/sbom --check target/debian/cachekeeper.cdx.json; fi

# Everything that is released, tried as far as it can be without Docker and Kubernetes.
package: deb servers packages book publish-check
	@if [ -x $(LINTERS) ]; then $(LINTERS) deploy/compose/try; else $(PYTHON) deploy/compose/try; fi

# Whether each crate can be published: its contents are packed, unpacked and compiled with each other.
publish-check:
	$(CARGO) publish --workspace --dry-run --locked --exclude cachekeeper-model

# What may be compiled in (deny.toml). Where cargo-deny is missing it is built once under target/tools: unoptimised, which takes
# a minute or two instead of many, and a check takes seconds all the same.
DENY_VERSION := 0.20.2
deny: export PATH := $(CURDIR)/target/tools/bin:$(PATH)
deny:
	@$(CARGO) deny --version >/dev/null 2>&1 || \
		$(CARGO) install cargo-deny --version $(DENY_VERSION) --locked --debug --root target/tools
	$(CARGO) deny --locked check licenses bans sources
	@if $(CARGO) deny fetch db >/dev/null 2>&1; then \
		$(CARGO) deny --locked check advisories; \
	else \
		echo "advisories: not checked, their database cannot be had here"; \
	fi

# Private servers are started from these programs; the system's own servers are never touched.
servers:
	@tests/install-servers

# The clients of other languages that the tests read with.
readers:
	@tests/readers/install

# The worker of an earlier commit, for rolling upgrades.
older:
	@tests/older/build
