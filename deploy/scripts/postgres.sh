#!/usr/bin/env bash
# Finds PostgreSQL's server binaries, or installs them through the system's package manager when root or sudo allows.
set -euo pipefail

[ -n "${MCPVAULT_DATABASE_URL:-}" ] && exit 0

found() {
  command -v initdb >/dev/null 2>&1 && command -v postgres >/dev/null 2>&1 && return 0
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && return 0
  compgen -G '/usr/pgsql-*/bin/initdb' >/dev/null && return 0
  compgen -G '/opt/homebrew/opt/postgresql*/bin/initdb' >/dev/null && return 0
  return 1
}
found && exit 0

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}
can_root() { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }

say() { echo "postgres: $*" >&2; }

if can_root; then
  if command -v apt-get >/dev/null 2>&1; then
    say "installing with apt-get"
    as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null
  elif command -v dnf >/dev/null 2>&1; then
    say "installing with dnf"
    as_root dnf install -y -q postgresql-server
  elif command -v apk >/dev/null 2>&1; then
    say "installing with apk"
    as_root apk add -q postgresql
  fi
fi
found && exit 0
say "PostgreSQL's server binaries are missing: run 'apt-get install postgresql' (or your system's equivalent), or set MCPVAULT_DATABASE_URL"
exit 1
