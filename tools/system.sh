#!/bin/sh
# Install from Debian what the tests run against: a browser, PostgreSQL 15, Prometheus. What is there already stays.
set -eu

missing=""
command -v chromium > /dev/null || missing="$missing chromium"
command -v prometheus > /dev/null || missing="$missing prometheus"
[ -x /usr/lib/postgresql/15/bin/postgres ] || missing="$missing postgresql-15"
ldconfig -p | grep -q libnuma.so.1 || missing="$missing libnuma1"

if [ -z "$missing" ]; then
    echo "Chromium, PostgreSQL 15 and Prometheus are installed."
elif [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "Installing$missing ..."
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1  # at runlevel 1 no service is started
    apt-get update -qq
    # shellcheck disable=SC2086
    apt-get install --yes --no-install-recommends $missing > /dev/null
else
    echo "Missing:$missing. The tests that need them are skipped. As root on Debian 12, make system installs them." >&2
fi
