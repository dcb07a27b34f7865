#!/bin/sh
# Brings noVNC's library into novnc/, as novnc/VERSION has it: by npm, from whatever
# registry npm is set up with, and only if it is the very package that was looked at.
# Another version: change version and integrity in novnc/VERSION, and run this.
set -eu
cd "$(dirname "$0")"
version=$(sed -n 's/^version //p' novnc/VERSION)
integrity=$(sed -n 's/^integrity //p' novnc/VERSION)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
(cd "$tmp" && npm pack --silent "@novnc/novnc@$version" >/dev/null)
got=sha512-$(openssl dgst -sha512 -binary "$tmp"/*.tgz | base64 -w0)
test "$got" = "$integrity" || { echo "novnc $version is $got, and not $integrity" >&2; exit 1; }
tar xzf "$tmp"/*.tgz -C "$tmp"
rm -rf novnc/core novnc/vendor
mkdir -p novnc/vendor/pako
cp -r "$tmp/package/core" novnc/
cp -r "$tmp/package/vendor/pako/lib" "$tmp/package/vendor/pako/LICENSE" novnc/vendor/pako/
cp "$tmp/package/LICENSE.txt" "$tmp/package/AUTHORS" "$tmp/package/docs/LICENSE.MPL-2.0" novnc/
files=$(find novnc -type f ! -name VERSION | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -d' ' -f1)
sed -i "s/^files .*/files $files/" novnc/VERSION
