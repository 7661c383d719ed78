#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The generated sources: which edits change the kernel-set id and the source id, and profiles that arrive byte for byte.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# ---- moe_build_info.h

tree=$scratch/tree
mkdir -p "$tree/kernels/cpu" "$tree/src"
echo 'int kernel;' >"$tree/kernels/cpu/gemm.c"
echo 'int decision;' >"$tree/src/plan.c"
echo 'flags -O2' >"$scratch/inputs"

# info NAME: that macro, after writing the header again.
info() {
    cmake "-DSOURCE_DIR=$tree" "-DKERNEL_INPUTS=$scratch/inputs" -DVERSION=1.2.3 "-DCOMPILER=GNU 12" \
        "-DOUTPUT=$scratch/info.h" -P "$MOE_SOURCE_DIR/src/cmake/write_build_info.cmake" || exit 1
    sed -n "s/^#define MOE_BUILD_$1 \"\(.*\)\"/\1/p" "$scratch/info.h"
}

first=$(info KERNEL_SET_ID)
echo "$first" | grep -qx '[0-9a-f]\{16\}' || fail "kernel-set id \"$first\" is not 16 hex digits"
[ "$(info VERSION)" = 1.2.3 ] || fail "version is \"$(info VERSION)\""
[ "$(info COMPILER)" = "GNU 12" ] || fail "compiler is \"$(info COMPILER)\""
[ "$(info SOURCE_ID)" = unknown ] || fail "source id without git is \"$(info SOURCE_ID)\""

touch -d '2001-01-01' "$scratch/info.h"
[ "$(info KERNEL_SET_ID)" = "$first" ] || fail "the kernel-set id changed by itself"
[ -z "$(find "$scratch/info.h" -newermt '2002-01-01')" ] || fail "the header was rewritten although nothing changed"
echo 'int other_decision;' >"$tree/src/plan.c"
[ "$(info KERNEL_SET_ID)" = "$first" ] || fail "a file outside of kernels/ changed the kernel-set id"
echo 'int kernel ;' >"$tree/kernels/cpu/gemm.c"
second=$(info KERNEL_SET_ID)
[ "$second" != "$first" ] || fail "an edit of a kernel did not change the kernel-set id"
echo 'flags -O3' >"$scratch/inputs"
[ "$(info KERNEL_SET_ID)" != "$second" ] || fail "a compiler flag did not change the kernel-set id"

if command -v git >/dev/null 2>&1; then
    git_in_tree() {
        git -C "$tree" -c user.name=test -c user.email=test@example.org -c commit.gpgsign=false "$@" >/dev/null
    }
    git_in_tree init -q
    git_in_tree add .
    git_in_tree commit -q -m first
    commit=$(git -C "$tree" rev-parse --short=12 HEAD)
    [ "$(info SOURCE_ID)" = "$commit" ] || fail "source id is \"$(info SOURCE_ID)\", not \"$commit\""
    echo 'int edited;' >"$tree/src/plan.c"
    [ "$(info SOURCE_ID)" = "$commit-dirty" ] || fail "source id of an edited tree is \"$(info SOURCE_ID)\""
    mkdir "$tree/vendored"
    tree=$tree/vendored
    [ "$(info SOURCE_ID)" = unknown ] || fail "a release unpacked inside another repository took its commit"
fi

# ---- moe_profiles.c

printf 'schema: moe-dispatch/1\n# "quoted" \\ \303\251 [a;b]\r\n' >"$scratch/b.yaml"
: >"$scratch/a.yaml"
cat >"$scratch/dump.c" <<'C'
#include <stdio.h>
#include "profiles.h"
int main(int argc, char **argv)
{
    for (size_t i = 0; i < moe_num_profiles; ++i) {
        if (argc == 1) {
            printf("%s %zu\n", moe_profiles[i].name, moe_profiles[i].text_bytes);
        } else if (i == (size_t)(argv[1][0] - '0')) {
            fwrite(moe_profiles[i].text, 1, moe_profiles[i].text_bytes, stdout);
        }
        if (moe_profiles[i].text[moe_profiles[i].text_bytes] != '\0') {
            return 1;
        }
    }
    return 0;
}
C
# dump_program: built from the profiles that the list names.
dump_program() {
    cmake "-DLIST=$scratch/list" "-DOUTPUT=$scratch/profiles.c" -P "$MOE_SOURCE_DIR/src/cmake/write_profiles.cmake"
    "$CC" -std=c11 -Wall -Wextra -Wpedantic -Werror "-I$MOE_SOURCE_DIR/src" -o "$scratch/dump" "$scratch/dump.c" "$scratch/profiles.c"
}
printf '%s\n%s\n' "$scratch/a.yaml" "$scratch/b.yaml" >"$scratch/list"
dump_program
[ "$("$scratch/dump")" = "$(printf 'a.yaml 0\nb.yaml %d' "$(wc -c <"$scratch/b.yaml")")" ] || fail "profiles are: $("$scratch/dump")"
"$scratch/dump" 1 | cmp - "$scratch/b.yaml" || fail "a profile changed on its way into the plugin"
echo >"$scratch/list"
dump_program
[ -z "$("$scratch/dump")" ] || fail "no profile at all gives: $("$scratch/dump")"
echo "build info and profiles: all as they should be"
