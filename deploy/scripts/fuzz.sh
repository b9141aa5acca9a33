#!/usr/bin/env bash
# Fuzzes every target of the packages below the given folders for the given time each: fuzz.sh 10s snapshot dataplane
set -euo pipefail
time=$1
shift
grep -rnoE --include='*_test.go' '^func Fuzz[A-Za-z0-9]+' "$@" | sort | while IFS=: read -r file _ func; do
  target=${func#func }
  echo "fuzz $(dirname "$file") $target"
  # A target's own tests come first, and Go fuzzes one target of one package at a time.
  go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$(dirname "$file")" </dev/null
done
