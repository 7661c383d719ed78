# SPDX-License-Identifier: Apache-2.0
# Completion of moectl for fish. What there is to complete, the program itself tells (--help=words).

function __moectl_words
    set -l tokens (commandline -opc)
    if test (count $tokens) -lt 2
        $tokens[1] --help=words 2>/dev/null
        return
    end
    set -l lines ($tokens[1] $tokens[2] --help=words 2>/dev/null)
    set -l kind (string match -r "^"(string escape --style=regex -- $tokens[-1])"\t(.*)" -- $lines)[2]
    switch "$kind"
        case '=*'
            string split '|' (string sub -s 2 -- $kind)
        case file
            __fish_complete_path (commandline -ct)
        case word
        case '*'
            if string match -q -- '-*' (commandline -ct)
                string replace -r "\t.*" "" -- $lines
            else
                __fish_complete_path (commandline -ct)
            end
    end
end
complete -c moectl -f -a '(__moectl_words)'
