# SPDX-License-Identifier: Apache-2.0
#
# What docs/integration.md shows is true: its C compiles without warnings, its YAML is valid.
set -eu
document=$MOE_SOURCE_DIR/docs/integration.md
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The lines of all blocks of a language.
block() {
    awk -v fence="\`\`\`$1" '$0 == "```" { inside = 0 } inside { print } $0 == fence { inside = 1; n++ } END { exit n < 1 }' "$document"
}

block c >"$work/host.c"
block yaml >"$work/rules.yaml"
"${CC:-cc}" -std=c11 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -I"$MOE_SOURCE_DIR/abi" -fsyntax-only "$work/host.c"
"$MOE_BUILD_DIR/bin/moectl" validate "$work/rules.yaml"
