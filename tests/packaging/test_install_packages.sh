#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# plugin/install_packages.sh on machines that lack cmake: root, sudo, neither, and nothing that helps. apt-get, sudo and id are
# played by scripts that note how they were called; packages are real ones, built here, so dpkg -x is real. No network.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
library=$MOE_SOURCE_DIR/plugin/install_packages.sh
calls=$scratch/calls
cases=0

fail() {
    echo "FAILED: $*" >&2
    echo "calls:" >&2
    cat "$calls" >&2
    echo "output:" >&2
    cat "$scratch/output" >&2
    exit 1
}

# program NAME: reads a script of a played machine from stdin.
program() {
    { echo '#!/bin/sh' && cat; } >"$bin/$1"
    chmod +x "$bin/$1"
}

# find_program NAME: its path, also if the shell has a builtin of that name.
find_program() (
    IFS=:
    for folder in $PATH; do
        if [ -x "$folder/$1" ]; then
            echo "$folder/$1"
            return 0
        fi
    done
    return 1
)

# machine: a PATH with ordinary tools, a compiler that knows no libyaml, and neither cmake nor anything of apt.
machine() {
    rm -rf "$scratch/bin" "$scratch/deps" "$scratch/installed"
    bin=$scratch/bin
    mkdir "$bin"
    : >"$calls"
    for tool in sh cat sed tr head grep mktemp rm mkdir mv touch basename dirname env dpkg dpkg-deb tar xz ls true; do
        path=$(find_program $tool) || continue
        ln -s "$path" "$bin/$tool"
    done
    echo 'echo 1000' | program id
    program cc <<'TEXT'
case " $* " in *" -l:libyaml.a "*) exit 1 ;; esac
exit 0
TEXT
}

# working_cmake FILE: what a package brings.
working_cmake() {
    mkdir -p "$(dirname "$1")"
    printf '#!/bin/sh\necho "cmake version 3.25.1"\n' >"$1"
    chmod +x "$1"
}

# apt_installs: an apt-get whose `install` succeeds.
apt_installs() {
    program apt-get <<TEXT
echo "apt-get \$*" >>"$calls"
case " \$* " in *" install "*) cp_cmake=1 ;; esac
[ -z "\${cp_cmake:-}" ] || { printf '#!/bin/sh\necho "cmake version 3.25.1"\n' >"$bin/cmake"; /bin/chmod +x "$bin/cmake"; }
TEXT
}

# run EXPECTED_STATUS REQUIREMENT...: install_packages there.
run() {
    expected=$1
    shift
    cases=$((cases + 1))
    status=0
    env -i PATH="$bin" HOME="$scratch" TMPDIR="$scratch" sh -eu -c '. "$0"; deps=$1; shift; install_packages "$deps" "$@"; cmake --version' \
        "$library" "$scratch/deps" "$@" >"$scratch/output" 2>&1 || status=$?
    [ "$status" -eq "$expected" ] || fail "exit status $status instead of $expected"
}
called() {
    grep -qF -- "$1" "$calls" || fail "\"$1\" was not called"
}
never_called() {
    if grep -q -- "$1" "$calls"; then
        fail "\"$1\" was called"
    fi
}
says() {
    grep -qF -- "$1" "$scratch/output" || fail "it did not say \"$1\""
}

# Nothing is missing: neither apt nor sudo is touched.
machine
working_cmake "$bin/cmake"
apt_installs
echo "echo \"sudo \$*\" >>'$calls'" | program sudo
run 0 compiler cmake
[ ! -s "$calls" ] || fail "something was called although nothing was missing"

# A cmake that is too old is missing.
machine
printf '#!/bin/sh\necho "cmake version 3.24.4"\n' >"$bin/cmake"
chmod +x "$bin/cmake"
apt_installs
echo 'echo 0' | program id
run 0 compiler cmake
called "apt-get install -y --no-install-recommends cmake"

# root: installs directly; the lists are not fetched when they do.
machine
apt_installs
echo 'echo 0' | program id
echo "echo \"sudo \$*\" >>'$calls'" | program sudo
run 0 compiler cmake
called "apt-get install -y --no-install-recommends cmake"
never_called update
never_called sudo

# root with stale lists: one update, then again.
machine
echo 'echo 0' | program id
program apt-get <<TEXT
echo "apt-get \$*" >>"$calls"
case \$1 in
update) : >"$scratch/installed" ;;
install) [ -f "$scratch/installed" ] || exit 100
    printf '#!/bin/sh\necho "cmake version 3.25.1"\n' >"$bin/cmake"; /bin/chmod +x "$bin/cmake" ;;
esac
TEXT
run 0 compiler cmake
called "apt-get update"

# root without network: the sentence, and 2.
machine
echo 'echo 0' | program id
echo "echo \"apt-get \$*\" >>'$calls'; exit 100" | program apt-get
run 2 compiler cmake
says "apt-get update && apt-get install -y --no-install-recommends cmake"

# sudo without a password.
machine
apt_installs
program sudo <<TEXT
echo "sudo \$*" >>"$calls"
[ "\$1" = -n ] || exit 1
shift
exec "\$@"
TEXT
run 0 compiler cmake
called "sudo -n env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends cmake"

# sudo asks for a password: packages are unpacked. cmake and a library of it come as real packages; libc6 stays the system's.
machine
for package in cmake libcmake-helper; do
    mkdir -p "$scratch/$package/DEBIAN" "$scratch/$package/usr/lib/x86_64-linux-gnu"
    printf 'Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: test\n' \
        "$package" >"$scratch/$package/DEBIAN/control"
done
working_cmake "$scratch/cmake/usr/bin/cmake"
echo 'GROUP ( /lib/x86_64-linux-gnu/libc.so.6 /usr/lib/x86_64-linux-gnu/libc_nonshared.a )' \
    >"$scratch/libcmake-helper/usr/lib/x86_64-linux-gnu/libc.so"
for package in cmake libcmake-helper; do
    dpkg-deb --root-owner-group --build "$scratch/$package" "$scratch/$package.deb" >/dev/null
done
echo "echo \"sudo \$*\" >>'$calls'; exit 1" | program sudo
program apt-get <<TEXT
echo "apt-get \$*" >>"$calls"
case " \$* " in
*" -s "*) printf 'NOTE: simulation\nInst libc6 [1] (2)\nInst libcmake-helper (1 Debian)\nInst cmake (1 Debian [amd64])\nConf cmake (1)\n' ;;
*" download "*) for name; do [ ! -f "$scratch/\$name.deb" ] || /bin/cp "$scratch/\$name.deb" .; done ;;
esac
TEXT
run 0 compiler cmake
called "apt-get download libcmake-helper cmake"
never_called "^apt-get install"
says "cmake version 3.25.1"
grep -qxF 'GROUP ( libc.so.6 libc_nonshared.a )' "$scratch/deps/usr/lib/x86_64-linux-gnu/libc.so" ||
    fail "libc.so still names files by absolute path"

# The second time everything is there.
: >"$calls"
run 0 compiler cmake
[ ! -s "$calls" ] || fail "something was called although everything had been unpacked"

# The download fails: the sentence, and 2.
machine
echo "echo \"apt-get \$*\" >>'$calls'; exit 100" | program apt-get
run 2 compiler cmake
says "apt-get update && apt-get install -y --no-install-recommends cmake"

# No apt at all.
machine
run 2 compiler cmake libyaml
says "install -y --no-install-recommends cmake libyaml-dev"

# What is printed names each missing package once.
machine
rm "$bin/cc"
run 2 compiler cmake generator
says "install -y --no-install-recommends gcc libc6-dev cmake ninja-build"

echo "$cases cases"
