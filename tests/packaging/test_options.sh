#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Options of the build that cannot be had are refused in a sentence; AUTO looks whether nvcc works, not whether it exists.
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# configure EXPECTED_STATUS WORDS OPTION...: the words have to be in what cmake says.
configure() {
    expected=$1
    words=$2
    shift 2
    rm -rf "$scratch/build"
    status=0
    cmake -S "$MOE_SOURCE_DIR" -B "$scratch/build" -DMOE_BUILD_TESTS=OFF "$@" >"$scratch/log" 2>&1 || status=1
    # cmake wraps long messages
    if [ "$status" -ne "$expected" ] || ! tr -s '\n ' ' ' <"$scratch/log" | grep -qF "$words"; then
        echo "FAILED: cmake $* ended with $status (expected $expected) without saying \"$words\":" >&2
        cat "$scratch/log" >&2
        exit 1
    fi
}

configure 1 'valid: AUTO, ON, OFF' -DMOE_ENABLE_CUDA=maybe
configure 1 'MOE_ENABLE_CUDA=ON, but the CUDA backend is off (/bin/false does not compile for sm_90a' \
    -DMOE_ENABLE_CUDA=ON -DMOE_NVCC=/bin/false
configure 0 'CUDA: off (/bin/false does not compile for sm_90a' -DMOE_ENABLE_CUDA=AUTO -DMOE_NVCC=/bin/false
configure 0 'CUDA: off (MOE_ENABLE_CUDA=OFF)' -DMOE_ENABLE_CUDA=OFF
configure 1 'valid: empty, "address,undefined", "thread"' -DMOE_SANITIZE=memory
configure 1 'MOE_FUZZ needs clang' -DMOE_FUZZ=ON -DCMAKE_C_COMPILER=gcc
archive_dir=$(sed -n 's|^MOE_LIBYAML_ARCHIVE:FILEPATH=\(.*\)/[^/]*|\1|p' "$MOE_BUILD_DIR/CMakeCache.txt")
configure 1 'libyaml is missing' "-DCMAKE_IGNORE_PATH=$archive_dir;${archive_dir#/usr}"
echo "options: all as they should be"
