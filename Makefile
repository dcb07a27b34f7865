# Kingmaker. `make help` lists the targets.
#
# On a fresh Debian with Go and root, `make demo` and `make test` need nothing
# else: .ci/packages installs what is missing. What takes long to build is kept
# in the user's cache folder, by version.

SHELL       := /bin/bash
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# what making a bundle and a lab needs on this computer
LAB_PACKAGES := mmdebstrap apt-utils iproute2 iptables xfsprogs
# what a desktop's own test runs: XFCE on a VNC server
DESKTOP_PACKAGES := tigervnc-standalone-server xfce4-session xfwm4 xfce4-panel xfdesktop4 xfce4-settings xfce4-notifyd libnotify-bin dbus-daemon
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.8.0

.PHONY: help demo test e2e e2e-long bench lint generate packages bundle

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: packages ## from nothing: five PCs become a site, which stays to be tried
	@.ci/packages $(LAB_PACKAGES)
	@go run ./cmd/lab demo

# Tests wait for clusters and disks: two at once keep two cores busy for 70 %.
test: packages ## unit and integration tests, with the race detector
	@.ci/packages $(LAB_PACKAGES) fdisk haproxy glusterfs-server attr slapd slapd-contrib ldap-utils $(DESKTOP_PACKAGES)
	@go run ./cmd/lab controlplane -- true
	go test -race -p $$(($$(nproc) + 1)) -timeout 25m ./...

e2e: packages ## tests on labs: real machines, networks, a power cut, a browser; half an hour
	@.ci/packages $(LAB_PACKAGES) chromium
	go test -tags e2e -p 1 -timeout 60m -count=1 ./cmd/lab/room ./cmd/lab/e2e

e2e-long: packages ## masters, copies and desktops that die, come back, are cut off; up to five hours
	@.ci/packages $(LAB_PACKAGES) chromium
	KINGMAKER_E2E_LONG=1 go test -tags e2e -timeout 300m -count=1 -v -skip '^(TestLab|TestCrown|TestDesktops)$$' ./cmd/lab/e2e

bench: packages ## the figures that the issues ask for, beside kubectl, OpenLDAP and websockify in the same run
	@.ci/packages slapd slapd-contrib ldap-utils websockify
	@go run ./cmd/lab bench
	go test -run '^$$' -bench School -benchtime 1x ./reconciler/ldap
	go test -run '^$$' -bench Proxy -benchtime 5x ./cmd/desktop

bundle: packages ## the offline bundle, with which machines are installed: an archive in ./dist
	@.ci/packages $(LAB_PACKAGES)
	@go run ./cmd/lab bundle --output dist --refresh

lint: packages ## gofmt, vet, staticcheck, govulncheck where its database can be reached
	@files=$$(gofmt -l .); test -z "$$files" || { echo "gofmt: $$files"; exit 1; }
	go vet -tags e2e ./...
	go run $(STATICCHECK) -tags e2e ./...
	@.ci/govulncheck $(GOVULNCHECK)

generate: ## schemas and CRDs from the Go types
	go test ./schema -update

packages:
	@.ci/packages
