#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Builds the plugin and runs the MoE layer of a bundled Hugging Face checkpoint through dlopen, against its golden output.
# Arguments are handed to `moectl run`, as in: sh plugin/demo.sh --tokens 8
# Exit 0: the numbers are right; 1: they are not, or the build failed; 2: something is missing that could not be installed.
set -eu
cd "$(dirname "$0")/.."
. plugin/install_packages.sh
install_packages build/deps compiler cmake generator libyaml

# A build folder that is there already keeps its settings, those of tests/run.sh for example.
preset=default
if [ ! -f build/CMakeCache.txt ]; then
    preset=demo
    if command -v ninja >/dev/null 2>&1; then
        CMAKE_GENERATOR=${CMAKE_GENERATOR:-Ninja}
        export CMAKE_GENERATOR
    fi
fi
cmake --preset "$preset"
cmake --build build --parallel "$(getconf _NPROCESSORS_ONLN)" --target moe_plugin moectl

model=tests/data/golden/qwen3_moe
set -- build/bin/moectl run --model "$model" --check "$model/golden.safetensors" "$@"
echo
echo "$ $*"
exec "$@"
