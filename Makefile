# `make dev` and `make test` are all a newcomer needs; both do their own set-up. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
GO ?= go
TOOL := $(GO) tool -modfile=tools.mod
GOFILES = $(shell git ls-files '*.go' | grep -v '^proto/gen/')
LDFLAGS := -s -w
TESTFLAGS ?= -race -timeout 15m
PACKAGES ?= ./...

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}'

.PHONY: dev
dev: postgres build ## start everything on this machine: PostgreSQL, control plane, a cell of three nodes, two demo servers
	@exec bin/mcpvault dev $(DEVFLAGS)

.PHONY: demo
demo: postgres build ## run the scripted tour: deny, allow, audit, outage, revoke
	@exec bin/mcpvault demo

.PHONY: build
build: ## build the three binaries into bin/
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/mcpvault ./cmd/mcpvault-controlplane ./cmd/mcpvault-cell

.PHONY: test
test: postgres ## run every test with the race detector, against a real PostgreSQL
	$(GO) test $(TESTFLAGS) $(PACKAGES)

.PHONY: e2e
e2e: postgres build ## real clients that were not written here, one logging in by OAuth, and the outside conformance suite (needs npm)
	$(GO) run ./bench/outside all

# Further runs: CONFORMANCEFLAGS='-times 10 -control-plane-down -leader-kill'.
CONFORMANCEFLAGS ?=

.PHONY: conformance
conformance: postgres build ## the outside suite's server leg and client leg through a cell, and what CONFORMANCEFLAGS adds
	$(GO) run ./bench/outside conformance $(CONFORMANCEFLAGS)

.PHONY: lint
lint: quick ## every linter, and the wire format against the last tag
	$(TOOL) golangci-lint run ./...
	bash deploy/scripts/buf-breaking.sh

.PHONY: quick
quick: ## the fast gates: vet, staticcheck, gofumpt, buf lint
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	@test -z "$$($(TOOL) gofumpt -l $(GOFILES))" || { echo 'gofumpt: run `make fmt`:'; $(TOOL) gofumpt -l $(GOFILES); exit 1; }
	$(TOOL) buf lint

.PHONY: fmt
fmt: ## format the code
	$(TOOL) gofumpt -w $(GOFILES)

.PHONY: gen
gen: ## generate code from the protos; leaves the tree clean when it is current
	$(TOOL) buf generate

.PHONY: bench
bench: postgres build ## decision, call through a cell against a bare reverse proxy, propagation, restart
	@bin/mcpvault bench all

.PHONY: soak
soak: postgres build ## 10,000 live sessions of 1,000 principals on one node for ten minutes
	@bin/mcpvault bench soak --sessions 10000 --principals 1000 --for 10m

# One of `mcpvault drill list`, or --all; further flags: DRILLFLAGS='--for 20s --load 200'.
DRILL ?= --all
DRILLFLAGS ?= --long

.PHONY: drill
drill: postgres build ## rehearse every failure in its long form, in private installations; DRILL=leader-kill for one
	@bin/mcpvault drill run $(DRILL) $(DRILLFLAGS)

.PHONY: drill-table
drill-table: ## write the degradation table of docs/operations.md from the report in bench/results/drills
	$(GO) test ./bench/drill/report -run TestTheDocumentedTable -update

# How many processes are killed, how many files of each kind are damaged, and how many kills each broken build has to survive.
KILLS ?= 200
FLIPS ?= 100
BROKENKILLS ?= 5

.PHONY: crash
crash: postgres ## kill KILLS=200 processes under load, damage FLIPS=100 files of each kind, and have the checker find every build that is broken on purpose
	$(GO) run ./bench/crash kills -n $(KILLS)
	$(GO) run ./bench/crash flips -n $(FLIPS)
	$(GO) run ./bench/crash broken -n $(BROKENKILLS)

# Users of the measured world: 10000, 100000 or 1000000.
USERS ?= 10000

.PHONY: bench-authz
bench-authz: ## the decision beside cedar-go and OPA, answers checked equal, for USERS=10000, 100000 or 1000000: JSON on stdout
	@$(GO) -C bench/peers run -mod=mod . -users $(USERS)

# How many random worlds each property is tried on, with some thirty requests each, and how long each reader is fuzzed.
CHECKS ?= 10000
FUZZTIME ?= 10s

.PHONY: verify
verify: ## the long runs: every property of the snapshot on CHECKS=10000 random worlds, the peers' answers, FUZZTIME=10s for each reader
	RAPID_CHECKS=$(CHECKS) $(GO) test -count=1 -timeout 0 ./snapshot/...
	RAPID_CHECKS=500 $(GO) -C bench/peers test -count=1 -mod=mod -timeout 0 .
	bash deploy/scripts/fuzz.sh $(FUZZTIME) snapshot controlplane dataplane kit

.PHONY: postgres
postgres: # find PostgreSQL's binaries, or install them through the system's package manager
	@bash deploy/scripts/postgres.sh
