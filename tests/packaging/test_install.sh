#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# ctest timeout: 180
#
# An installation that was moved after `cmake --install` serves a host that finds it with find_package, one that finds it
# with pkg-config, and its own moectl.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fail() {
    echo "FAILED: $*" >&2
    exit 1
}

version=$(sed -n 's/^#define MOE_BUILD_VERSION "\(.*\)"/\1/p' "$MOE_BUILD_DIR/generated/moe_build_info.h")
expected="moe-plugin $version"
prefix=$scratch/moved
cmake --install "$MOE_BUILD_DIR" --prefix "$scratch/first" >"$scratch/log" || fail "cmake --install: $(cat "$scratch/log")"
mv "$scratch/first" "$prefix"
libdir=$(dirname "$(find "$prefix" -name moe-plugin.pc)")/..

# find_package
consumer=$MOE_SOURCE_DIR/tests/packaging/consumer
cmake -S "$consumer" -B "$scratch/cmake" -DCMAKE_PREFIX_PATH="$prefix" >"$scratch/log" 2>&1 ||
    fail "find_package: $(cat "$scratch/log")"
cmake --build "$scratch/cmake" >"$scratch/log" 2>&1 || fail "building with MoePlugin::headers: $(cat "$scratch/log")"
printed=$("$scratch/cmake/consumer") || fail "the host built with find_package ended with $?"
[ "$printed" = "$expected" ] || fail "the host built with find_package printed \"$printed\", not \"$expected\""
for other in 0.0 0.2 1.0; do
    if cmake -S "$consumer" -B "$scratch/other" -DCMAKE_PREFIX_PATH="$prefix" -DWANTED_VERSION=$other >/dev/null 2>&1; then
        fail "find_package(MoePlugin $other) was content with $version"
    fi
done

# pkg-config
command -v pkg-config >/dev/null 2>&1 || fail "pkg-config is not installed"
export PKG_CONFIG_PATH="$libdir/pkgconfig"
[ "$(pkg-config --modversion moe-plugin)" = "$version" ] || fail "pkg-config --modversion: $(pkg-config --modversion moe-plugin)"
# shellcheck disable=SC2046
"$CC" -std=c11 -Wall -Werror -D_GNU_SOURCE -DPLUGIN="\"$(pkg-config --variable=plugin moe-plugin)\"" \
    $(pkg-config --cflags moe-plugin) -o "$scratch/consumer" "$consumer/consumer.c" || fail "building with pkg-config"
printed=$("$scratch/consumer") || fail "the host built with pkg-config ended with $?"
[ "$printed" = "$expected" ] || fail "the host built with pkg-config printed \"$printed\", not \"$expected\""

# moectl, which looks beside itself
(cd / && "$prefix/bin/moectl" info >"$scratch/log" 2>&1) || fail "installed moectl info: $(cat "$scratch/log")"

# Nothing installed may name the folder it was built in or installed to first.
if grep -rlIF -e "$scratch/first" -e "$MOE_BUILD_DIR" -e "$MOE_SOURCE_DIR" "$prefix"; then
    fail "the files above name a folder of this machine"
fi
echo "installed $expected: find_package, pkg-config and moectl work after a move"
