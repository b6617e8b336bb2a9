# How a root made here reaches the network as this host does. Sourced, not run.
# shellcheck shell=bash

host_apt_settings() { # proxies and the like, without what names this host's own files
    apt-config dump | grep -E '^Acquire::(http|https|Check-|Retries|ForceIPv)' || true
}

share_host_network() { # resolver, certificates, apt's and pip's settings, and the directories that pip's name
    local root=$1 word
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" 2>/dev/null || true
    host_apt_settings >"$root/etc/apt/apt.conf.d/99host"
    if [ -f /etc/pip.conf ]; then cp /etc/pip.conf "$root/etc/pip.conf"; fi
    if [ -f ~/.config/pip/pip.conf ]; then install -D -m 644 ~/.config/pip/pip.conf "$root/root/.config/pip/pip.conf"; fi
    for word in $(cat /etc/pip.conf ~/.config/pip/pip.conf 2>/dev/null) ${PIP_FIND_LINKS:-} ${PIP_EXTRA_INDEX_URL:-}; do
        word=${word#file://}
        if [[ $word = /* && -d $word && ! -e $root$word ]]; then
            mkdir -p "$root$word"
            mount --bind -o ro "$word" "$root$word"
            # A simple index refers to its files by relative links: they are beside it.
            if [[ $word = */simple && -d ${word%simple}files ]]; then
                mkdir -p "$root${word%simple}files"
                mount --bind -o ro "${word%simple}files" "$root${word%simple}files"
            fi
        fi
    done
}

network_settings() { # NAME=VALUE, one a line: what of this environment is about reaching the network
    local name
    for name in $(compgen -e | grep -iE '^(pip_.*|(https?|ftp|all|no)_proxy|ssl_cert_(file|dir)|requests_ca_bundle)$'); do
        printf '%s=%s\n' "$name" "${!name}"
    done
}
