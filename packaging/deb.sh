#!/bin/sh
# Makes the Debian package of a respaldo program: deb.sh PROGRAM DIR. The same program and
# commit give the same package, byte for byte. Needs git, gzip, and go, which builds nfpm.
set -eu
nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.44.2
program=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "$0")/.."

# What the package's files are dated. Without git, the day of the last release.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
# A Debian version begins with a digit, and what follows a dash is a revision. Without a tag
# the commit's date sorts it.
VERSION=$("$program" --version | sed 's/^respaldo v\{0,1\}//' | tr - +)
case $VERSION in
[0-9]*.*) ;;
*) VERSION=0.0.0+$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M).$VERSION ;;
esac
ARCH=$(go env GOARCH)
STAGE=$out/deb
export VERSION ARCH STAGE SOURCE_DATE_EPOCH

umask 022
rm -rf "$STAGE"
mkdir -p "$STAGE/completion" "$STAGE/doc/samples"
cp "$program" "$STAGE/respaldo"
"$program" man "$STAGE/man"
gzip -9n "$STAGE"/man/*
"$program" completion bash >"$STAGE/completion/respaldo.bash"
"$program" completion zsh >"$STAGE/completion/_respaldo"
"$program" completion fish >"$STAGE/completion/respaldo.fish"
cp README.md docs/*.md packaging/copyright "$STAGE/doc/"
cp docs/es/README.md "$STAGE/doc/README.es.md"
cp docs/samples/*.toml "$STAGE/doc/samples/"
gzip -9nc CHANGELOG.md >"$STAGE/doc/changelog.gz"
find "$STAGE" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +

deb=$out/respaldo_${VERSION}_$ARCH.deb
go run $nfpm package --config packaging/nfpm.yaml --packager deb --target "$deb" >/dev/null
rm -rf "$STAGE"
echo "$deb"
