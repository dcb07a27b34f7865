# Kingmaker. `make help` lists the targets.
#
# On a fresh Debian with Go and root, `make demo` and `make test` need nothing
# else: .ci/packages installs what is missing. What takes long to build is kept
# in the user's cache folder, by version.

SHELL       := /bin/bash
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.8.0

.PHONY: help demo test bench lint generate packages

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: packages ## a control plane, a site repo, a push, and what comes of it
	@go run ./cmd/lab demo

test: packages ## unit and integration tests, with the race detector
	@go run ./cmd/lab controlplane -- true
	go test -race -timeout 25m ./...

bench: packages ## the figures that the issues ask for, beside kubectl in the same run
	@go run ./cmd/lab bench

lint: packages ## gofmt, vet, staticcheck, govulncheck where its database can be reached
	@files=$$(gofmt -l .); test -z "$$files" || { echo "gofmt: $$files"; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...
	@.ci/govulncheck $(GOVULNCHECK)

generate: ## schemas and CRDs from the Go types
	go test ./schema -update

packages:
	@.ci/packages
