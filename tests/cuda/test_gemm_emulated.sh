#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# ctest timeout: 300
# The grouped GEMM's source on an emulated sm_90a (emulated/sm90.h): fixed rounds here; MOE_EMULATED_ROUNDS asks for others.
set -eu
include=$(cat "$MOE_BUILD_DIR/tests/cuda_include_dir")
program=$(mktemp)
trap 'rm -f "$program"' EXIT
cd "$MOE_SOURCE_DIR"
# The kernel's unused parts and CUDA's headers warn; what matters here is what it computes.
"${CXX:-c++}" -std=c++17 -O1 -w -Itests/cuda/emulated -Ikernels -Ikernels/cuda -Iabi "-I$include" -o "$program" \
    tests/cuda/emulated/gemm_emulated.cpp
"$program" "${MOE_EMULATED_ROUNDS:-12}"
