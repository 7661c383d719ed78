#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Builds everything with warnings as errors and runs all tests: the optimized build (gcc), then AddressSanitizer, UBSan and
# libFuzzer (clang), then ThreadSanitizer (gcc), the sanitizers over a fixed subset; also plugin/demo.sh. The last line sums all.
#   --full   the full grids instead of the pairwise ones
# Exit 0: all passed; 1: a build or a test failed; 2: something is missing that could not be installed.
set -eu
cd "$(dirname "$0")/.."

for argument in "$@"; do
    case $argument in
    --full)
        MOE_TEST_FULL=1
        export MOE_TEST_FULL
        ;;
    *)
        echo "tests/run.sh: unknown argument \"$argument\"; valid: --full" >&2
        exit 2
        ;;
    esac
done

. plugin/install_packages.sh
install_packages build/deps compiler cmake generator libyaml cxx cmocka pkg-config clang clang-tidy clang-format python

num_jobs=$(getconf _NPROCESSORS_ONLN)
num_passed=0
num_failed=0

# junit_count FILE ATTRIBUTE: a number of the summary that ctest wrote.
junit_count() {
    sed -n "s/^[[:space:]]*$2=\"\([0-9]*\)\".*/\1/p" "$1" | head -n 1
}

# run_preset PRESET BUILD_DIR [LAUNCHER...]: configures, builds, tests; a build that fails counts as one failed test.
run_preset() {
    preset=$1
    build_dir=$2
    shift 2
    echo
    echo "== $preset"
    if [ ! -f "$build_dir/CMakeCache.txt" ] && command -v ninja >/dev/null 2>&1; then
        CMAKE_GENERATOR=${CMAKE_GENERATOR:-Ninja}
        export CMAKE_GENERATOR
    fi
    build_started=$(date +%s)
    if ! cmake --preset "$preset" || ! cmake --build "$build_dir" --parallel "$num_jobs"; then
        echo "== $preset: the build failed"
        num_failed=$((num_failed + 1))
        return 0
    fi
    echo "== $preset: built in $(($(date +%s) - build_started)) s with $num_jobs jobs"
    rm -f "$build_dir/junit.xml"
    "$@" ctest --test-dir "$build_dir" --parallel "$num_jobs" --output-on-failure --no-tests=error \
        --output-junit junit.xml || true
    if [ ! -f "$build_dir/junit.xml" ]; then
        echo "== $preset: no test ran"
        num_failed=$((num_failed + 1))
        return 0
    fi
    tests=$(junit_count "$build_dir/junit.xml" tests)
    failures=$(junit_count "$build_dir/junit.xml" failures)
    not_run=$(($(junit_count "$build_dir/junit.xml" skipped) + $(junit_count "$build_dir/junit.xml" disabled)))
    [ "$not_run" -eq 0 ] || echo "== $preset: $not_run skipped"
    num_failed=$((num_failed + failures))
    num_passed=$((num_passed + tests - failures - not_run))
}

run_preset werror build
echo
echo "== plugin/demo.sh"
if sh plugin/demo.sh; then
    num_passed=$((num_passed + 1))
else
    num_failed=$((num_failed + 1))
fi
run_preset asan build/asan
# ThreadSanitizer's shadow needs the addresses of a process where older kernels put them.
if setarch "$(uname -m)" -R true 2>/dev/null; then
    run_preset tsan build/tsan setarch "$(uname -m)" -R
else
    run_preset tsan build/tsan
fi

echo
echo "$num_passed passed, $num_failed failed"
[ "$num_failed" -eq 0 ]
