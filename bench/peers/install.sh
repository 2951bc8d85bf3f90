#!/bin/sh
# What make bench-peers measures beside Tallywire, as far as it can be had here. Never fails: what is missing is named
# and left out of the run.
pip=$1

"$pip" install --quiet --disable-pip-version-check --editable '.[bench]' ||
    echo "bench: the extra [bench] could not be installed, its servers are left out" >&2

missing=
command -v "${CC:-cc}" >/dev/null || missing="gcc libc6-dev"
{ [ -x /usr/sbin/nginx ] && ls /usr/lib*/nginx/modules/ngx_nchan_module.so >/dev/null 2>&1; } ||
    missing="$missing nginx-light libnginx-mod-nchan"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    # RUNLEVEL=1: nginx comes with a service, which is not wanted and shall not be started.
    # shellcheck disable=SC2086
    apt-get update -qq &&
        RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null &&
        exit 0
fi
echo "bench: not installed, and left out: $missing" >&2
