# Everything that a test or demonstration needs is fetched into a cache folder of the
# project's own ($RESPALDO_CACHE, else respaldo in the user's cache folder). No root needed.
export CGO_ENABLED = 0

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

.PHONY: build deb test demo lab bench soak exactness clean

build:
	go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o dist/respaldo ./cmd/respaldo

deb: build
	sh packaging/deb.sh dist/respaldo dist

# Host tests first: they fail sooner; among them the longest first. -count=1 because go test cannot see what a guest runs.
test:
	go run ./lab/cmd/lab prepare
	go vet ./...
	go vet -tags lab,guest,faults ./...
	go test ./internal/mysql ./...
	go test -tags faults ./internal/ledger
	go test -tags lab -count=1 -timeout 60m -v ./lab

demo:
	@go run ./lab/cmd/lab demo

lab:
	@go run ./lab/cmd/lab shell

bench:
	go run ./bench
	go run ./bench stall

soak:
	go run ./lab/cmd/lab prepare
	RESPALDO_SOAK=1 go test -tags lab,soak -count=1 -timeout 12h -v ./lab

exactness:
	go run ./lab/cmd/lab prepare
	RESPALDO_SOAK=1 RESPALDO_RESULTS=1 go test -tags lab -count=1 -timeout 12h -v -run '^TestExact$$' ./lab

clean:
	rm -rf dist respaldo
