#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# sh tests/gpu.sh BUILD_DIR OUT_DIR [STAGE...]
# Everything there is to do on a machine with an NVIDIA GPU, from a build tree that was made elsewhere and carried there: the
# machine needs libc and the driver (and compute-sanitizer and cuobjdump for their stages).
#   check     every operation but the GEMM, every tile of it, against the CPU backend, bit for bit
#   gemm      the grouped GEMM without the plugin: every tile against patterns and float64, and the same bits of all tiles and grids
#   large     T 4096 and 65536, offsets beyond 2^31 bytes, against naive float64 kernels
#   layer     whole layers against the CPU backend and double arithmetic, and what has to be the same bits
#   random    random layers, experts and grouped GEMMs against the CPU backend, T up to 65536: what `layer` does not combine
#   golden    moectl run --backend cuda on the layers of tests/data/golden
#   sanitize  check with few cases, the GEMM, two layers and few calls of what these leave out (transposed weights, more routes, pairs
#             in order, chunks, experts in passes) under compute-sanitizer: memcheck, initcheck, synccheck; racecheck: the first alone
#   sass      the machine code: no local memory, 128-bit loads and stores where rows move, warp-group MMA and TMA in the GEMM
#   bench     times, as table and bench.json, with the limits of the device measured in the same run
#   wide      the same for 8 to 512 experts, k 1 to 10 and skewed routing, as wide.json
#   layer_bench  times of whole layers with their parts, as table and layer.json
#   report    gpu-report.json and a table of what the other stages left in OUT_DIR
# No STAGE: all, in this order. Each ends within 9 minutes. Exit 0: all passed; 1: one failed; 2: wrong arguments. A stage whose
# tool is missing or refuses the machine is reported as skipped.
set -u

stages="check gemm large layer random golden sanitize sass bench wide layer_bench report"
if [ $# -lt 2 ]; then
    echo "usage: sh tests/gpu.sh BUILD_DIR OUT_DIR [STAGE...], stages: $stages" >&2
    exit 2
fi
bin_dir=$1/bin
out_dir=$2
shift 2
if [ ! -x "$bin_dir/gpu_check" ]; then
    echo "tests/gpu.sh: $bin_dir/gpu_check is missing: build with MOE_ENABLE_CUDA=ON" >&2
    exit 2
fi
# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $stages
for stage in "$@"; do
    case " $stages " in
    *" $stage "*) ;;
    *)
        echo "tests/gpu.sh: unknown stage \"$stage\"; valid: $stages" >&2
        exit 2
        ;;
    esac
done
golden_dir=$(dirname "$0")/data/golden
mkdir -p "$out_dir"
export PATH="$PATH:/usr/local/cuda/bin"
stage_seconds=540
num_cases=${MOE_GPU_CASES:-150}
num_failed=0

# result STAGE VERDICT TEXT: one line that `report` and the last table read.
result() {
    printf '%s\t%s\t%s\n' "$1" "$2" "$3" >"$out_dir/$1.result"
    [ "$2" != failed ] || num_failed=$((num_failed + 1))
}

# last_line FILE
last_line() {
    tail -n 1 "$1" | tr '\t' ' '
}

stage_check() {
    if timeout "$stage_seconds" "$bin_dir/gpu_check" "$num_cases" >"$out_dir/check.log" 2>&1; then
        result check passed "$(last_line "$out_dir/check.log")"
    else
        result check failed "$(last_line "$out_dir/check.log")"
    fi
}

# The program loads its reference and the kernels that the build left.
stage_gemm() {
    for file in "$bin_dir/gpu_gemm" "$bin_dir/gpu_gemm.fatbin" "$bin_dir/gpu_limits.fatbin" "$bin_dir/../cuda/gemm.fatbin"; do
        if [ ! -f "$file" ]; then
            result gemm skipped "$file was not carried (BUILD_DIR/bin and BUILD_DIR/cuda)"
            return
        fi
    done
    if timeout "$stage_seconds" "$bin_dir/gpu_gemm" check >"$out_dir/gemm.log" 2>&1; then
        result gemm passed "$(last_line "$out_dir/gemm.log")"
    else
        result gemm failed "$(last_line "$out_dir/gemm.log")"
    fi
}

stage_large() {
    if timeout "$stage_seconds" "$bin_dir/gpu_large" >"$out_dir/large.log" 2>&1; then
        result large passed "$(last_line "$out_dir/large.log")"
    else
        result large failed "$(last_line "$out_dir/large.log")"
    fi
}

# sanitized LOG TOOL PROGRAM [ARGUMENT...]: 0 passed, 1 failed, 2 the tool does not support the device, 3 no time is left.
sanitized() {
    log=$1
    tool=$2
    shift 2
    options="--tool $tool"
    # A kernel is looked up in one module after the other; that one has it not is no error.
    [ "$tool" != memcheck ] || options="$options --report-api-errors no"
    left=$((120 - $(date +%s) + sanitize_started))
    [ "$left" -ge 5 ] || return 3
    # shellcheck disable=SC2086
    timeout "$left" compute-sanitizer $options --error-exitcode 1 "$@" >"$log" 2>&1 && return 0
    ! grep -q "Device not supported" "$log" || return 2
    return 1
}

# A tool that cannot work on the machine says so before the first kernel runs. racecheck knows nothing of the copies that the GEMM's
# barriers wait for, so it sees the other kernels alone.
stage_sanitize() {
    if ! command -v compute-sanitizer >/dev/null 2>&1; then
        result sanitize skipped "compute-sanitizer is not installed"
        return
    fi
    verdict=passed
    text=
    sanitize_started=$(date +%s)
    for tool in memcheck initcheck synccheck racecheck; do
        for part in ops gemm layer paired brief; do
            log=$out_dir/sanitize-$tool-$part.log
            case $tool,$part in
            racecheck,gemm | racecheck,layer | racecheck,paired | racecheck,brief) continue ;;
            *,ops) sanitized "$log" "$tool" "$bin_dir/gpu_check" 2 ;;
            *,gemm) sanitized "$log" "$tool" "$bin_dir/gpu_gemm" problem pattern ;;
            *,layer) sanitized "$log" "$tool" "$bin_dir/gpu_layer" check 1 router brief ;;
            *,paired) sanitized "$log" "$tool" "$bin_dir/gpu_layer" check 1 "oai, paired" brief ;;
            *,brief) sanitized "$log" "$tool" "$bin_dir/gpu_layer" check 1 "brief, " brief ;;
            esac
            case $? in
            0) text="$text $tool:$part" ;;
            2)
                result sanitize skipped "compute-sanitizer does not support this machine's device"
                return
                ;;
            3)
                verdict=failed
                text="$text $tool:$part:NO-TIME-LEFT"
                ;;
            *)
                verdict=failed
                text="$text $tool:$part:FAILED"
                ;;
            esac
        done
    done
    result sanitize "$verdict" "${text# } in $(($(date +%s) - sanitize_started)) s"
}

# lacking LISTING FUNCTIONS PATTERN: the functions of a listing, of those whose name matches, that have no such instruction.
lacking() {
    awk -v functions="$2" -v pattern="[ \t]$3" '
        /Function :/ { name = $3; if (name ~ functions) { all[name] = 1 } }
        $0 ~ pattern { has[name] = 1 }
        END { for (name in all) { if (!(name in has)) { printf " %s", name }; count++ }; if (!count) { printf " none-there" } }' "$1"
}

# need NAME LISTING FUNCTIONS INSTRUCTION PATTERN: adds to `problems`.
need() {
    missing=$(lacking "$2" "$3" "$5")
    [ -z "$missing" ] || problems="$problems $1:no-$4-in:$(echo "$missing" | tr ' ' ',')"
}

# need_somewhere NAME LISTING INSTRUCTION PATTERN: a file has scalar kernels for odd widths beside the wide ones.
need_somewhere() {
    grep -Eq "[[:space:]]$4" "$2" || problems="$problems $1:no-$3"
}

# Reads the fatbins that the build left.
stage_sass() {
    if ! command -v cuobjdump >/dev/null 2>&1; then
        result sass skipped "cuobjdump is not installed"
        return
    fi
    problems=
    num_files=0
    for fatbin in "$bin_dir"/../cuda/*.fatbin; do
        [ -f "$fatbin" ] || continue
        num_files=$((num_files + 1))
        name=$(basename "$fatbin" .fatbin)
        listing=$out_dir/$name.sass
        if ! cuobjdump --dump-sass "$fatbin" >"$listing" 2>&1 || ! grep -q "Function :" "$listing"; then
            problems="$problems $name:unreadable"
            continue
        fi
        if grep -Eq '[[:space:]](LDL|STL)[. ]' "$listing"; then
            problems="$problems $name:local-memory"
        fi
        case $name in
        pre_reorder | post_reorder | quantize | activation)
            need_somewhere "$name" "$listing" 128-bit-loads 'LDG[A-Z0-9.]*\.128'
            need_somewhere "$name" "$listing" 128-bit-stores 'STG[A-Z0-9.]*\.128'
            ;;
        gemm | gemm_transposed | gemm_paired) # every tile: warp-group MMA, weights by TMA, wide stores
            need "$name" "$listing" SM90 warp-group-MMA 'HGMMA[. ]'
            need "$name" "$listing" SM90 TMA 'UTMALDG[. ]'
            need "$name" "$listing" SM90 128-bit-stores 'STG[A-Z0-9.]*[.]128'
            ;;
        router)
            need "$name" "$listing" "^moe_ROUTER" MMA 'HMMA[. ]'
            need_somewhere "$name" "$listing" 128-bit-loads 'LDG[A-Z0-9.]*\.128'
            ;;
        esac
        if [ "$name" = pre_reorder ] && grep -q "arch = sm_90" "$listing"; then
            need_somewhere "$name" "$listing" bulk-copies UBLKCP
        fi
    done
    if [ "$num_files" -eq 0 ]; then
        result sass skipped "no fatbins beside the programs (carry BUILD_DIR/cuda too)"
    elif [ ! -f "$out_dir/gemm.sass" ]; then
        result sass failed "no gemm.fatbin among $num_files files"
    elif [ -n "$problems" ]; then
        result sass failed "${problems# }"
    else
        result sass passed "$num_files files: no local memory, 128-bit loads and stores, warp-group MMA and TMA in the GEMM"
    fi
}

stage_layer() {
    if timeout "$stage_seconds" "$bin_dir/gpu_layer" check >"$out_dir/layer.log" 2>&1; then
        result layer passed "$(last_line "$out_dir/layer.log")"
    else
        result layer failed "$(last_line "$out_dir/layer.log")"
    fi
}

stage_random() {
    if timeout "$stage_seconds" "$bin_dir/gpu_random" >"$out_dir/random.log" 2>&1; then
        result random passed "$(last_line "$out_dir/random.log")"
    else
        result random failed "$(last_line "$out_dir/random.log")"
    fi
}

stage_layer_bench() {
    if timeout "$stage_seconds" "$bin_dir/gpu_layer" bench "$out_dir/layer.json" >"$out_dir/layer_bench.log" 2>&1; then
        result layer_bench passed "$(grep -c ' us ' "$out_dir/layer_bench.log") times; $(sed -n 2p "$out_dir/layer_bench.log")"
    else
        result layer_bench failed "$(last_line "$out_dir/layer_bench.log")"
    fi
}

stage_bench() {
    if timeout "$stage_seconds" "$bin_dir/gpu_bench" "$out_dir/bench.json" >"$out_dir/bench.log" 2>&1; then
        result bench passed "$(grep -c ' us ' "$out_dir/bench.log") times; $(sed -n 2p "$out_dir/bench.log")"
    else
        result bench failed "$(last_line "$out_dir/bench.log")"
    fi
}

stage_wide() {
    if timeout "$stage_seconds" "$bin_dir/gpu_bench" "$out_dir/wide.json" wide >"$out_dir/wide.log" 2>&1; then
        result wide passed "$(grep -c ' us ' "$out_dir/wide.log") times"
    else
        result wide failed "$(last_line "$out_dir/wide.log")"
    fi
}

# Every family's layer against the outputs that transformers gave.
stage_golden() {
    wrong=
    refused=
    num_families=0
    : >"$out_dir/golden.log"
    started=$(date +%s)
    for family in "$golden_dir"/*/; do
        [ -f "$family/golden.safetensors" ] || continue
        left=$((stage_seconds - $(date +%s) + started))
        if [ "$left" -lt 1 ]; then
            wrong="$wrong NO-TIME-LEFT"
            break
        fi
        num_families=$((num_families + 1))
        name=$(basename "$family")
        log=$out_dir/golden-one.log
        if timeout "$left" "$bin_dir/moectl" run --backend cuda --model "$family" --check "$family/golden.safetensors" >"$log" 2>&1; then
            :
        elif grep -q "the cuda backend" "$log"; then # its sentence about what it does not implement
            refused="$refused $name"
        else
            wrong="$wrong $name"
        fi
        cat "$log" >>"$out_dir/golden.log"
    done
    if [ "$num_families" -eq 0 ]; then
        result golden skipped "no checkpoints in $golden_dir"
    elif [ -n "$wrong" ]; then
        result golden failed "not right:$wrong"
    else
        result golden passed "$num_families families${refused:+, refused in a sentence:}$refused"
    fi
}

# Results as JSON strings, and the times as they are.
stage_report() {
    {
        printf '{"stages": ['
        separator=
        for file in "$out_dir"/*.result; do
            [ -f "$file" ] || continue
            printf '%s\n  ' "$separator"
            sed 's/\\/\\\\/g; s/"/\\"/g; s/^\([^\t]*\)\t\([^\t]*\)\t\(.*\)$/{"stage": "\1", "verdict": "\2", "text": "\3"}/' "$file"
            separator=,
        done
        printf ']'
        for times in bench wide layer; do
            printf ', "%s": ' "$times"
            if [ -s "$out_dir/$times.json" ]; then
                cat "$out_dir/$times.json"
            else
                printf 'null'
            fi
        done
        printf '}\n'
    } >"$out_dir/gpu-report.json"
    for times in bench wide; do
        [ ! -s "$out_dir/$times.log" ] || cat "$out_dir/$times.log"
    done
}

for stage in "$@"; do
    "stage_$stage"
done

echo
for file in "$out_dir"/*.result; do
    [ ! -f "$file" ] || awk -F '\t' '{printf "%-11s %-8s %s\n", $1, $2, $3}' "$file"
done
[ "$num_failed" -eq 0 ]
