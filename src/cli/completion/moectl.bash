# SPDX-License-Identifier: Apache-2.0
# Completion of moectl for bash. What there is to complete, the program itself tells (--help=words).

_moectl() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local program=${COMP_WORDS[0]} words kind
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "$("$program" --help=words 2>/dev/null) --help --version" -- "$current")
        return
    fi
    words=$("$program" "${COMP_WORDS[1]}" --help=words 2>/dev/null) || return
    kind=$(printf '%s\n' "$words" | sed -n "s/^$previous	//p")
    case $kind in
    =*) mapfile -t COMPREPLY < <(compgen -W "$(printf '%s' "${kind#=}" | tr '|' ' ')" -- "$current") ;;
    file) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    word) ;;
    *)
        case $current in
        -*) mapfile -t COMPREPLY < <(compgen -W "$(printf '%s\n' "$words" | cut -f 1)" -- "$current") ;;
        *) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        esac
        ;;
    esac
}
complete -o filenames -F _moectl moectl
