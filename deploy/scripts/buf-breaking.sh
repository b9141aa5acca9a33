#!/usr/bin/env bash
# Holds the protos to the last release tag: fields and procedures only grow.
set -euo pipefail
tag=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true)
if [ -z "$tag" ]; then
  echo "buf breaking: no release tag yet, nothing to compare with"
  exit 0
fi
exec go tool -modfile=tools.mod buf breaking --against ".git#tag=$tag"
