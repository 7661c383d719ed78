#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Manual pages and completion: every option of --help stands in the command's page and is completed; values with choices are
# completed by them, and files by files.
set -eu

moectl=$MOE_BUILD_DIR/bin/moectl
man_dir=$MOE_BUILD_DIR/man
fail() {
    echo "FAILED: $*" >&2
    exit 1
}

commands=$("$moectl" --help=words)
[ "$(echo "$commands" | wc -l)" -ge 8 ] || fail "--help=words lists too few commands: $commands"
for command in $commands; do
    page=$man_dir/moectl-$command.1
    [ -s "$page" ] || fail "$page is missing"
    [ "$("$moectl" "$command" --help=man)" = "$(cat "$page")" ] || fail "$page is not what --help=man prints"
    grep -q "^\\\\fBmoectl" "$page" || fail "$page has no synopsis"
    for option in $("$moectl" "$command" --help | sed -n 's/^ .*--\([a-z0-9-]*\).*/\1/p'); do
        in_roff=$(echo "--$option" | sed 's/-/\\-/g')
        grep -qF -- "$in_roff\fR" "$page" || fail "$page lacks --$option"
        "$moectl" "$command" --help=words | cut -f 1 | grep -qx -- "--$option" || fail "--help=words of $command lacks --$option"
    done
    "$moectl" "$command" --help | sed -n 's/^ .*\(--[a-z0-9-]*\) \([a-z0-9_|-]*|[a-z0-9_|-]*\)\( .*\)\{0,1\}$/\1 \2/p' |
        while read -r option choices; do
            "$moectl" "$command" --help=words | grep -qxF -- "$option	=$choices" || fail "--help=words of $command lacks the choices $choices of $option"
        done
    grep -q "moectl.*$command" "$man_dir/moectl.1" || fail "moectl.1 does not name $command"
done
if "$moectl" run --help=html 2>"$man_dir/err.txt"; then
    fail "--help=html was taken"
fi
grep -q "'html' is not one of man and words" "$man_dir/err.txt" || fail "no sentence for --help=html"
rm -f "$man_dir/err.txt"

if command -v groff >/dev/null 2>&1; then
    for page in "$man_dir"/*.1; do
        warnings=$(groff -man -Tascii -ww "$page" 2>&1 >/dev/null)
        [ -z "$warnings" ] || fail "groff says of $page: $warnings"
    done
fi

# complete WORD...: what bash offers for the last word.
complete_words() {
    bash -c '
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        _moectl
        printf "%s\n" "${COMPREPLY[@]}"' bash "$MOE_SOURCE_DIR/src/cli/completion/moectl.bash" "$moectl" "$@"
}
expect() {
    wanted=$1
    shift
    complete_words "$@" | grep -qx -- "$wanted" || fail "completing '$*' does not offer '$wanted': $(complete_words "$@" | tr '\n' ' ')"
}
expect validate va
expect --version --ver
expect --model run --mo
expect cpu run --backend c
expect fp8-weights bench --dtype fp8
[ -z "$(complete_words run --tokens '' | tr -d '\n')" ] || fail "a number is completed"
cd "$MOE_SOURCE_DIR"
expect README.md validate READ
expect README.md run --check READ
echo "pages and completion of $(echo "$commands" | wc -l) commands"
