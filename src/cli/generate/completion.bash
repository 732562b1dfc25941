# Completions of vmm-reference for bash 4 and newer.

# Sets `kind` to what an option of a command takes as its value, `apart` to whether that may be the next word.
_vmm_reference_kind() {
    kind= apart=0
    case "$1,$2" in
        @KINDS@
    esac
}

# Sets `options` and `subcommands` to those of a command, `after` to how many arguments come before its subcommands.
# A command is named by all words that lead to it.
_vmm_reference_command() {
    options= subcommands= after=0
    case "$1" in
        @COMMANDS@
    esac
}

# Sets `free` to what the argument $2, from 0, of a command is.
_vmm_reference_argument() {
    free=
    case "$1,$2" in
        @ARGUMENTS@
    esac
}

# Sets `kind` to what may follow a key of an option's value, or to its keys.
_vmm_reference_part() {
    kind=none
    case "$1,$2" in
        @PARTS@
    esac
}

# Adds to `found` what may stand for $3, a value of the kind $1, each with $2 in front.
_vmm_reference_find() {
    local kind=$1 front=$2 value=$3 one done part
    case $kind in
        words:*)
            while IFS= read -r one; do
                found+=("$front$one")
            done < <(compgen -W "${kind#words:}" -- "$value")
            ;;
        files)
            compopt -o filenames 2>/dev/null
            while IFS= read -r one; do
                found+=("$front$one")
            done < <(compgen -f -- "$value")
            ;;
        target)
            case $value in
                file=*) _vmm_reference_find files "${front}file=" "${value#file=}" ;;
                *) _vmm_reference_find "words:@TARGETS@" "$front" "$value" ;;
            esac
            ;;
        parts:*)
            compopt -o nospace 2>/dev/null
            part=${value##*,}
            done=${value%"$part"}
            case $part in
                *=*)
                    _vmm_reference_part "${kind#parts:}" "${part%%=*}="
                    _vmm_reference_find "$kind" "$front$done${part%%=*}=" "${part#*=}"
                    ;;
                *)
                    # The first part of a disk may be a path alone.
                    if [[ $kind == parts:blk && -z $done ]]; then
                        _vmm_reference_find files "$front" "$part"
                    fi
                    _vmm_reference_part "${kind#parts:}" ""
                    _vmm_reference_find "$kind" "$front$done" "$part"
                    ;;
            esac
            ;;
    esac
}

_vmm_reference() {
    local line=${COMP_LINE:0:COMP_POINT}
    local word=${line##*[[:space:]]}
    local -a words found=()
    read -ra words <<<"${line%"$word"}"
    local command= count=0 kind= apart=0 options= subcommands= after=0 free= i
    for ((i = 1; i < ${#words[@]}; i++)); do
        case ${words[i]} in
            -*=*) ;;
            -*)
                _vmm_reference_kind "$command" "${words[i]}"
                ((apart)) && ((i++))
                ;;
            *)
                _vmm_reference_command "$command"
                if ((count >= after)) && [[ " $subcommands " == *" ${words[i]} "* ]]; then
                    command="${command:+$command }${words[i]}" count=0
                else
                    ((count++))
                fi
                ;;
        esac
    done
    if ((i > ${#words[@]})); then
        # The value of the option before.
        _vmm_reference_find "$kind" "" "$word"
    elif [[ $word == -*=* ]]; then
        _vmm_reference_kind "$command" "${word%%=*}"
        _vmm_reference_find "$kind" "${word%%=*}=" "${word#*=}"
    else
        _vmm_reference_command "$command"
        _vmm_reference_argument "$command" "$count"
        [[ -z $free ]] && ((count >= after)) && free="words:$subcommands"
        case $word in
            -*) free="words:$options" ;;
        esac
        _vmm_reference_find "$free" "" "$word"
    fi
    # bash replaces what comes after the last of these characters only.
    local cut=
    [[ $COMP_WORDBREAKS == *=* ]] && cut=${word%"${word##*[=]}"}
    [[ $COMP_WORDBREAKS == *:* && ${word#"$cut"} == *:* ]] && cut=${word%"${word##*[:=]}"}
    COMPREPLY=("${found[@]#"$cut"}")
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace 2>/dev/null
    fi
}

complete -F _vmm_reference vmm-reference
