#!/usr/bin/env bash
# Fuzzes every target of the packages below the given folders for the given time each: fuzz.sh 10s snapshot dataplane
set -euo pipefail
time=$1
shift
grep -rnoE --include='*_test.go' '^func Fuzz[A-Za-z0-9]+' "$@" | sort | while IFS=: read -r file _ func; do
  target=${func#func }
  echo "fuzz $(dirname "$file") $target"
  # Go fuzzes one target of one package at a time. When a run's time is up it now and then takes the end for a failure
  # (golang/go#75804), which says nothing about the target: that is tried again.
  for try in 1 2 3; do
    if out=$(go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$(dirname "$file")" </dev/null 2>&1); then
      break
    fi
    if [ "$try" = 3 ] || ! grep -q 'context deadline exceeded' <<<"$out" || grep -q 'Failing input' <<<"$out"; then
      echo "$out"
      exit 1
    fi
  done
done
