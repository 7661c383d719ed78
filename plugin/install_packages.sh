# SPDX-License-Identifier: Apache-2.0
#
# Sourced by plugin/demo.sh and tests/run.sh (POSIX sh). Brings the tools that a build needs onto this machine, and touches
# neither apt nor the network when nothing is missing.
#
#   install_packages DEPS_DIR REQUIREMENT...    requirements: compiler cmake generator libyaml cxx cmocka pkg-config clang
#                                               clang-tidy clang-format python
#
# As root it installs; else with `sudo -n`; else it unpacks the packages under DEPS_DIR and points PATH and the compiler's
# search paths there; else it prints the one command that somebody with the right to do so has to run, and returns 2.

moe_packages_of() {
    case $1 in
    compiler) echo "gcc libc6-dev" ;;
    cmake) echo "cmake" ;;
    generator) echo "ninja-build" ;;
    libyaml) echo "libyaml-dev" ;;
    cxx) echo "g++" ;;
    cmocka) echo "libcmocka-dev" ;;
    pkg-config) echo "pkg-config" ;;
    clang) echo "clang libclang-rt-dev" ;;
    clang-tidy) echo "clang-tidy" ;;
    clang-format) echo "clang-format" ;;
    python) echo "python3" ;;
    *) return 1 ;;
    esac
}

# moe_links PROGRAM FLAG... : whether the program on stdin compiles and links.
moe_links() {
    moe_probe_dir=$(mktemp -d) || return 1
    moe_probe_status=0
    cat >"$moe_probe_dir/probe.src"
    "$@" -o "$moe_probe_dir/probe" >/dev/null 2>&1 <"$moe_probe_dir/probe.src" || moe_probe_status=1
    rm -rf "$moe_probe_dir"
    return $moe_probe_status
}

# The compiler that CMake will take.
moe_c_compiler() {
    if [ -n "${CC:-}" ]; then
        echo "$CC"
    elif command -v cc >/dev/null 2>&1; then
        echo cc
    else
        echo gcc
    fi
}

moe_has_cmake() {
    command -v cmake >/dev/null 2>&1 || return 1
    moe_cmake_version=$(cmake --version | sed -n '1s/.*version \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
    # shellcheck disable=SC2086
    set -- $moe_cmake_version
    [ "${1:-0}" -gt 3 ] || { [ "${1:-0}" -eq 3 ] && [ "${2:-0}" -ge 25 ]; }
}

# moe_has REQUIREMENT: what counts is that it works, not which package brought it.
moe_has() {
    case $1 in
    compiler) echo '#include <stdio.h>
int main(void) { return puts("") < 0; }' | moe_links "$(moe_c_compiler)" -x c - ;;
    cmake) moe_has_cmake ;;
    generator) command -v ninja >/dev/null 2>&1 || command -v make >/dev/null 2>&1 ;;
    libyaml) echo '#include <yaml.h>
int main(void) { return yaml_get_version_string() == 0; }' | moe_links "$(moe_c_compiler)" -x c - -l:libyaml.a ;;
    cxx) echo '#include <cstdlib>
int main() { return std::abs(0); }' | moe_links "${CXX:-g++}" -x c++ - ;;
    cmocka) echo '#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
int main(void) { return _cmocka_run_group_tests("", 0, 0, 0, 0); }' | moe_links "$(moe_c_compiler)" -x c - -lcmocka ;;
    clang) echo 'int LLVMFuzzerTestOneInput(const unsigned char *data, unsigned long size);
int LLVMFuzzerTestOneInput(const unsigned char *data, unsigned long size) { return size && *data ? 0 : 0; }' |
        moe_links clang -fsanitize=fuzzer,address,undefined -x c - ;;
    python) command -v python3 >/dev/null 2>&1 && python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' ;;
    *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# The packages of all requirements that do not hold, on one line.
moe_missing_packages() {
    for moe_requirement in "$@"; do
        moe_has "$moe_requirement" || moe_packages_of "$moe_requirement"
    done | tr '\n' ' ' | sed 's/ $//'
}

# moe_apt_install PREFIX PACKAGE... : PREFIX is empty or "sudo -n". The package lists are fetched only if they do not do.
moe_apt_install() {
    moe_prefix=$1
    shift
    # shellcheck disable=SC2086
    $moe_prefix env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" && return 0
    # shellcheck disable=SC2086
    $moe_prefix apt-get update && $moe_prefix env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# moe_names_to_unpack PACKAGE... : the packages, and those of their dependencies that are not installed. libc itself stays the
# system's: programs that run here use its loader.
moe_names_to_unpack() {
    apt-get -s -o Debug::NoLocking=1 install --no-install-recommends "$@" | sed -n 's/^Inst \([^ :]*\).*/\1/p' |
        grep -Evx 'libc6|libc-bin'
}

# moe_apt_unpack DEPS_DIR PACKAGE... : needs no rights. Where the system's package lists do not do, apt gets lists of its own.
moe_apt_unpack() (
    deps=$1
    shift
    mkdir -p "$deps/apt/lists/partial" "$deps/apt/cache/archives/partial" "$deps/apt/debs" && cd "$deps/apt/debs" || return 1
    if ! names=$(moe_names_to_unpack "$@" 2>/dev/null); then
        printf 'Dir::State::Lists "%s";\nDir::Cache "%s";\n' "$deps/apt/lists" "$deps/apt/cache" >"$deps/apt/apt.conf" || return 1
        APT_CONFIG=$deps/apt/apt.conf
        export APT_CONFIG
        apt-get update && names=$(moe_names_to_unpack "$@") || return 1
    fi
    # shellcheck disable=SC2086
    apt-get download $names || return 1
    for deb in *.deb; do
        dpkg -x "$deb" "$deps" || return 1
    done
    # Linker scripts name files by absolute path; by name alone they are found along the search path.
    for script in "$deps"/usr/lib/*/libc.so "$deps"/usr/lib/*/libm.so; do
        if [ -f "$script" ]; then
            sed 's|/[^ ]*/\([^/ ]*\)|\1|g' "$script" >"$script.new" && mv "$script.new" "$script" || return 1
        fi
    done
    touch "$deps/complete"
)

# moe_use_unpacked DEPS_DIR: lets shell, compiler, linker and CMake find what moe_apt_unpack left there.
moe_use_unpacked() {
    [ -f "$1/complete" ] || return 0
    for moe_multiarch in "$1"/usr/lib/*-linux-gnu*; do
        moe_multiarch=${moe_multiarch##*/}
    done
    moe_usr=$1/usr
    PATH=$moe_usr/bin:$PATH
    C_INCLUDE_PATH=$moe_usr/include:$moe_usr/include/$moe_multiarch${C_INCLUDE_PATH:+:$C_INCLUDE_PATH}
    CPLUS_INCLUDE_PATH=$moe_usr/include:$moe_usr/include/$moe_multiarch${CPLUS_INCLUDE_PATH:+:$CPLUS_INCLUDE_PATH}
    for moe_cxx_dir in "$moe_usr"/include/c++/* "$moe_usr/include/$moe_multiarch"/c++/*; do # they #include_next those of C
        [ ! -d "$moe_cxx_dir" ] || CPLUS_INCLUDE_PATH=$moe_cxx_dir:$CPLUS_INCLUDE_PATH
    done
    COMPILER_PATH=$moe_usr/lib/$moe_multiarch${COMPILER_PATH:+:$COMPILER_PATH} # where clang looks for crt1.o
    LIBRARY_PATH=$moe_usr/lib/$moe_multiarch:$1/lib/$moe_multiarch${LIBRARY_PATH:+:$LIBRARY_PATH}
    LD_LIBRARY_PATH=$moe_usr/lib/$moe_multiarch:$1/lib/$moe_multiarch${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    CMAKE_PREFIX_PATH=$moe_usr${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}
    PKG_CONFIG_PATH=$moe_usr/lib/$moe_multiarch/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
    export PATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH COMPILER_PATH LIBRARY_PATH LD_LIBRARY_PATH CMAKE_PREFIX_PATH PKG_CONFIG_PATH
    if ! command -v cc >/dev/null 2>&1; then
        CC=${CC:-gcc}
        export CC
    fi
}

install_packages() {
    case $1 in
    /*) moe_deps_dir=$1 ;;
    *) moe_deps_dir=$(pwd)/$1 ;;
    esac
    shift
    moe_use_unpacked "$moe_deps_dir"
    moe_packages=$(moe_missing_packages "$@")
    [ -n "$moe_packages" ] || return 0
    echo "Missing here: $moe_packages"
    if command -v apt-get >/dev/null 2>&1; then
        # shellcheck disable=SC2086
        if [ "$(id -u)" -eq 0 ]; then
            moe_apt_install "" $moe_packages || true
        elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
            moe_apt_install "sudo -n" $moe_packages || true
        else
            echo "Neither root nor sudo without a password: unpacking into $moe_deps_dir"
            if moe_apt_unpack "$moe_deps_dir" $moe_packages; then
                moe_use_unpacked "$moe_deps_dir"
            fi
        fi
    fi
    moe_packages=$(moe_missing_packages "$@")
    [ -n "$moe_packages" ] || return 0
    echo "Could not install what is missing. Run this as root, then start again:" >&2
    echo "    apt-get update && apt-get install -y --no-install-recommends $moe_packages" >&2
    return 2
}
