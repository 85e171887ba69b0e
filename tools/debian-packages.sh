#!/bin/sh
# See to the Debian packages of tools/debian-packages.txt.
#
#   sh tools/debian-packages.sh tests           install those that are missing where that is possible
#                                               (root and apt-get), else say what is missing;
#                                               exit code 1 if something is missing and CI is set
#   sh tools/debian-packages.sh install NAME…   install these
#
# No daemon is started or left enabled by an installation from here: tests start their own, on ports
# of their own. Whatever is changed for that is put back. Never uses sudo.
set -eu

tree=$(cd "$(dirname "$0")/.." && pwd -P)
list=$tree/tools/debian-packages.txt
policy=${KESTREL_POLICY_FILE:-/usr/sbin/policy-rc.d} # the variable is for tests of this script
our_policy=no
clusters=${KESTREL_CLUSTERS_DIRECTORY:-/etc/postgresql-common/createcluster.d} # likewise
our_clusters=no
our_clusters_file=no

say() { echo "packages: $*"; }

put_back() {
    if [ "$our_policy" = yes ]; then rm -f "$policy"; fi
    if [ "$our_clusters_file" = yes ]; then rm -f "$clusters/kestrel.conf"; fi
    if [ "$our_clusters" = yes ]; then rmdir "$clusters" 2>/dev/null || :; fi
}
trap put_back EXIT
trap 'exit 130' INT TERM

forbid_starts() { # deb-policy: exit code 101 tells maintainer scripts not to start services.
    if [ ! -e "$policy" ]; then
        our_policy=yes
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
}

forbid_clusters() { # postgresql-common: no database cluster is made when a server is installed.
    if [ ! -e "$clusters" ]; then
        our_clusters=yes
        mkdir -p "$clusters"
    fi
    if [ ! -e "$clusters/kestrel.conf" ]; then
        our_clusters_file=yes
        echo "create_main_cluster = false" >"$clusters/kestrel.conf"
    fi
}

there() { # PROGRAM: names or paths, with | between them
    (
        # Servers live in sbin, which is not on every PATH.
        PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
        IFS='|'
        # A name stays as it is, a path with wildcards becomes the paths that are there.
        for candidate in $1; do
            if command -v "$candidate" >/dev/null 2>&1; then exit 0; fi
        done
        exit 1
    )
}

disable_services() { # PACKAGE: what was just installed must not start at the next boot either.
    dpkg -L "$1" | sed -n 's|^/etc/init.d/\([^/]*\)$|\1|p' | while read -r service; do
        update-rc.d "$service" disable >/dev/null || say "could not disable the service $service"
    done
}

install() { # NAME…: returns 1 if apt-get could not
    forbid_starts
    case " $* " in *" postgresql"*) forbid_clusters ;; esac
    export DEBIAN_FRONTEND=noninteractive
    # A fresh image has no package lists, and an old list names files that are gone.
    if ! apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1; then
        apt-get update -q >/dev/null || return 1
        apt-get install -y -q --no-install-recommends "$@" || return 1
    fi
    for name in "$@"; do disable_services "$name"; done
}

case ${1:-} in
install)
    shift
    install "$@"
    ;;
tests)
    missing=""
    while read -r name program _; do
        case $name in '' | '#'*) continue ;; esac
        there "$program" || missing="$missing $name"
    done <"$list"
    if [ -z "$missing" ]; then exit 0; fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "apt-get install$missing"
        # shellcheck disable=SC2086  # a list of words
        if install $missing; then exit 0; fi
    fi
    say "missing for the whole of the tests:$missing" >&2 # or apt-get could not: its words are above
    say "  Debian, Ubuntu, as root:  apt-get install$missing" >&2
    if [ -n "${CI:-}" ]; then
        say "  CI is set: nothing may be missing" >&2
        exit 1
    fi
    say "  without them the tests that need them are skipped, and say so" >&2
    ;;
*)
    echo "usage: sh tools/debian-packages.sh tests | install NAME…" >&2
    exit 2
    ;;
esac
