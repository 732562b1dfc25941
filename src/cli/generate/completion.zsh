# Completes the value of an option that has parts: key=value,flag, with commas between them.
_vmm_reference_parts() {
    local option=$1 first=1
    local -a keys
    compset -P '*,' && first=0
    case $option in
        @KEYS@
    esac
    if [[ $PREFIX == *=* ]]; then
        local key="${PREFIX%%=*}="
        compset -P "$key"
        case $option,$key in
        @VALUES@
        esac
        return
    fi
    local -a with=(${(M)keys:#*=}) without=(${keys:#*=})
    # The first part of a disk may be a path alone.
    [[ $option == blk && $first == 1 ]] && _files -S ''
    (( $#with )) && compadd -S '' -- $with
    (( $#without )) && compadd -S '' -- $without
}

# Completes where a console goes.
_vmm_reference_target() {
    if compset -P 'file='; then
        _files
    else
        local -a words=(@TARGETS@)
        compadd -- ${words:#*=}
        compadd -S '' -- ${(M)words:#*=}
    fi
}
