#!/bin/sh
# The tests drive the server with curl and open the report in a real browser. Installs what is missing, if this user may.
set -eu
missing=""
command -v curl >/dev/null || missing="$missing curl"
command -v chromium >/dev/null || missing="$missing chromium"
command -v chromedriver >/dev/null || missing="$missing chromium-driver"
[ -n "$missing" ] || exit 0

give_up() {
    echo "the tests need:$missing. $1, then run make test again" >&2
    exit 1
}
command -v apt-get >/dev/null || give_up "Install them (chromedriver comes with chromium-driver)"
as_root=""
[ "$(id -u)" -eq 0 ] || as_root="sudo -n"
install="$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends"
echo "installing$missing"
# shellcheck disable=SC2086
$install $missing >/dev/null 2>&1 || { $as_root apt-get update -qq && $install $missing >/dev/null; } ||
    give_up "As root: apt-get install$missing"
