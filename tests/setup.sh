#!/bin/bash
# Installs what Luna's build, demo, tests and benches need on a Debian machine, as root.
#
#   tests/setup.sh build|demo|test|bench
#
# Idempotent: what is there is not touched, and when everything is there no package tool is started at all, so that it
# costs nothing to run before every `make`. Nothing is started, enabled or written outside of apt, rustup's home and
# target/guest (the kernel for the demo's virtual machine is unpacked there, never installed).
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-test}

say() { echo "setup: $*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

# command package: a package is wanted when its command is missing
wanted=()
want() { have "$1" || wanted+=("$2"); }

want curl curl
want cc gcc
want fusermount3 fuse3
case $what in
demo | test | bench)
    want qemu-img qemu-utils
    want qemu-system-x86_64 qemu-system-x86
    # only the static one runs inside an initramfs without libraries
    dpkg -s busybox-static >/dev/null 2>&1 || wanted+=(busybox-static)
    ;;
esac
case $what in
test | bench)
    want git git
    want ip iproute2
    want nbdkit nbdkit
    want nbdinfo libnbd-bin
    want fio fio
    want setfattr attr
    want sqlite3 sqlite3
    want stress-ng stress-ng
    want mkfs.ext4 e2fsprogs
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || wanted+=(postgresql)
    ;;
esac

updated=
apt_update() {
    [ -n "$updated" ] && return
    say "apt-get update"
    apt-get -qq update >&2
    updated=1
}

if [ ${#wanted[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        say "missing: ${wanted[*]}; run this as root, or install them yourself"
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    # the postgresql package would start a cluster of its own; the tests bring their own
    if [[ " ${wanted[*]} " == *" postgresql "* ]]; then
        mkdir -p /etc/postgresql-common
        [ -e /etc/postgresql-common/createcluster.conf ] ||
            echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    fi
    say "apt-get install ${wanted[*]}"
    apt-get -qq install -y --no-install-recommends "${wanted[@]}" >/dev/null 2>&1 || {
        apt_update
        apt-get -qq install -y --no-install-recommends "${wanted[@]}" >&2
    }
fi

# The guest's kernel: Debian's cloud kernel has virtio and a serial console and nothing of a desktop's weight.
guest_kernel() {
    local dir=target/guest
    compgen -G "$dir/vmlinuz-*" >/dev/null && return
    mkdir -p "$dir/deb"
    local pkg
    pkg=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
    if [ -z "$pkg" ]; then
        apt_update
        pkg=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
    fi
    say "unpacking $pkg into $dir (not installed)"
    (cd "$dir/deb" && { apt-get -qq download "$pkg" >/dev/null 2>&1 || { apt_update; apt-get -qq download "$pkg" >/dev/null; }; })
    dpkg -x "$dir"/deb/linux-image-*.deb "$dir/deb/x"
    rm -rf "$dir/modules"
    mv "$dir"/deb/x/lib/modules "$dir/modules"
    mv "$dir"/deb/x/boot/vmlinuz-* "$dir/"
    rm -rf "$dir/deb"
}
case $what in
demo | test | bench)
    # without it the demo moves a plain writer process instead of a virtual machine, and says so
    guest_kernel || say "no guest kernel: the demo will do without a virtual machine"
    [ -e /dev/fuse ] || modprobe fuse || { say "no /dev/fuse: this machine's kernel has no FUSE"; exit 1; }
    ;;
esac

# Rust: the distribution's is too old for edition 2024
have cargo || export PATH="$HOME/.cargo/bin:$PATH"
if ! have cargo; then
    say "installing Rust by rustup"
    curl -sSf --proto '=https' --tlsv1.2 https://sh.rustup.rs | sh -s -- -y -q --profile minimal -c clippy -c rustfmt >&2
fi
if [ "$what" = test ] && ! cargo nextest --version >/dev/null 2>&1; then
    say "installing cargo-nextest"
    curl -LsSf https://get.nexte.st/latest/linux | tar zxf - -C "$HOME/.cargo/bin" 2>/dev/null ||
        cargo install cargo-nextest --locked
fi
# the POSIX cases that others wrote: Debian has no package of it
if [ "$what" = test ] && ! have pjdfstest; then
    say "installing pjdfstest"
    cargo install pjdfstest --version 0.2.2 --locked -q
fi
