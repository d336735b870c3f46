# Sourced by ./demo, ./test and benches/run: installs what a fresh Debian or Ubuntu lacks, and nothing that is there.
# Usage: . scripts/setup.sh; need_build; need_guest; need_test_peers

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# need_packages COMMAND=PACKAGE ...: installs the packages whose command or file is missing.
need_packages() {
  local missing=() pair
  for pair in "$@"; do
    case "${pair%%=*}" in
      /*) [ -e "${pair%%=*}" ] || missing+=("${pair#*=}") ;;
      *) PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}") ;;
    esac
  done
  [ ${#missing[@]} = 0 ] && return
  say "installing ${missing[*]}"
  # Lists may be absent on a fresh machine; a list that cannot be renewed is no reason to stop.
  as_root apt-get -qq update || true
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

rust_is_new_enough() {
  command -v cargo >/dev/null && command -v rustc >/dev/null \
    && [ "$(printf '%s\n' 1.95.0 "$(rustc --version | cut -d' ' -f2)" | sort -V | head -n1)" = 1.95.0 ]
}

# A Rust of 1.95 or newer: the user's own, else the distribution's, else rustup's.
need_rust() {
  [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
  rust_is_new_enough && return
  say "installing Rust"
  as_root apt-get -qq update || true
  if apt-cache show rustc-web 2>/dev/null | grep -qE '^Version: 1\.(9[5-9]|[1-9][0-9][0-9])'; then
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
      rustc-web cargo-web rustfmt-web rust-web-clippy >/dev/null
  else
    need_packages curl=curl /etc/ssl/certs/ca-certificates.crt=ca-certificates
    curl --proto '=https' -sSf https://static.rust-lang.org/rustup/rustup-init.sh | sh -s -- -y --profile minimal -c rustfmt -c clippy >/dev/null
    PATH="$HOME/.cargo/bin:$PATH"
  fi
  hash -r
  rust_is_new_enough || { say "no Rust 1.95 or newer could be installed"; exit 1; }
}

need_build() {
  need_packages cc=gcc /usr/include/stdio.h=libc6-dev
  need_rust
}

# A guest kernel: the host's own where it can be read with its modules, else the distribution's cloud kernel, unpacked
# beside the build (installing it would change what this machine boots).
need_guest() {
  need_packages qemu-system-x86_64=qemu-system-x86 /bin/busybox=busybox-static
  [ -n "${CALVE_KERNEL:-}" ] && return
  local kernel
  for kernel in /boot/vmlinuz-*; do
    if [ -r "$kernel" ] && [ -d "/lib/modules/${kernel#/boot/vmlinuz-}" ]; then return; fi
  done
  local dir=$root/target/guest-kernel
  if ! ls "$dir"/lib/modules/*/modules.dep >/dev/null 2>&1; then
    need_packages /sbin/depmod=kmod
    say "fetching a guest kernel"
    as_root apt-get -qq update || true
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null || apt-cache depends linux-image-virtual)
    package=$(grep -oE 'linux-image-[0-9][^ ]*' <<<"$package" | head -n1)
    rm -rf "$dir.new" && mkdir -p "$dir.new"
    (cd "$dir.new" && apt-get -qq download "$package" && dpkg -x ./*.deb . && rm ./*.deb)
    # What its package would do when it is installed: guests are given those of its modules that they need.
    /sbin/depmod -b "$dir.new" "$(ls "$dir.new/lib/modules")"
    rm -rf "$dir" && mv "$dir.new" "$dir"
  fi
  CALVE_KERNEL=$(ls "$dir"/boot/vmlinuz-* | sort -V | tail -n1)
  export CALVE_KERNEL
}

# QEMU came with virtiofsd until Debian 12; later it is a package of its own.
need_virtiofsd() {
  local place
  for place in /usr/libexec/virtiofsd /usr/lib/virtiofsd /usr/lib/qemu/virtiofsd; do
    if [ -x "$place" ]; then return; fi
  done
  as_root apt-get -qq update || true
  if apt-cache show virtiofsd >/dev/null 2>&1; then
    need_packages /usr/libexec/virtiofsd=virtiofsd
  else
    need_packages /usr/lib/qemu/virtiofsd=qemu-system-common
  fi
}

# The clients that people use from Python, each in an environment of its own beside the build: DigitalOcean's own and the one
# of Proxmox VE. Where one cannot be had, its test says so.
need_python_client() {
  local module=$1 dir=$root/target/$1
  shift
  if "$dir/bin/python" -c "import $module" 2>/dev/null; then return; fi
  python3 -c 'import ensurepip' 2>/dev/null || need_packages /usr/share/doc/python3-venv=python3-venv
  say "fetching $module"
  rm -rf "$dir" && python3 -m venv "$dir"
  "$dir/bin/pip" install --quiet --disable-pip-version-check "$@" ||
    say "$module cannot be had here: its test is left out"
}

# Programs of a Nix newer than the one that is installed, for the tests: the one of Debian 13 with its libraries, unpacked
# beside the build. Where it cannot be had, the tests that want it say so.
NEWER_NIX_SUITE=trixie
need_newer_nix() {
  [ -n "${CALVE_NEWER_NIX:-}" ] && return
  local dir=$root/target/newer-nix mode=unshare program
  [ "$(id -u)" = 0 ] && mode=root
  if [ ! -x "$dir/bin/nix" ]; then
    say "fetching a newer Nix"
    rm -rf "$dir" "$dir.new"
    if ! mmdebstrap --quiet --skip=output/dev --mode=$mode --variant=extract --include=nix-bin \
      $NEWER_NIX_SUITE "$dir.new" http://deb.debian.org/debian >/dev/null 2>"$dir.log"; then
      say "a newer Nix cannot be had here ($(tail -n1 "$dir.log")): its tests are left out"
      return
    fi
    mkdir "$dir.new/bin"
    for program in nix nix-store nix-hash; do
      # With its own libraries, and the name by which it knows what to do.
      printf '#!/bin/sh\nexec "%s" --argv0 %s --library-path "%s" "%s" "$@"\n' "$dir/usr/lib64/ld-linux-x86-64.so.2" \
        "$program" "$dir/usr/lib/x86_64-linux-gnu" "$dir/usr/bin/nix" >"$dir.new/bin/$program"
      chmod +x "$dir.new/bin/$program"
    done
    mv "$dir.new" "$dir"
  fi
  export CALVE_NEWER_NIX=$dir/bin
}

# A server of SSH for hosts that tests borrow, unpacked beside the build: installed, it would listen on this machine.
need_sshd() {
  local dir=$root/target/sshd
  need_packages ssh=openssh-client sudo=sudo pgrep=procps unshare=util-linux python3=python3
  if [ -x "$dir/usr/sbin/sshd" ]; then return; fi
  say "fetching sshd"
  as_root apt-get -qq update || true
  rm -rf "$dir" "$dir.new" && mkdir -p "$dir.new"
  (cd "$dir.new" && apt-get -qq download openssh-server && dpkg -x ./*.deb . && rm ./*.deb)
  mv "$dir.new" "$dir"
  # What it links beyond what everything does.
  if ldd "$dir/usr/sbin/sshd" | grep -q 'libwrap.*not found'; then need_packages /none=libwrap0; fi
}

# What the tests compare calve with, and real Nix.
need_test_peers() {
  need_sshd
  need_virtiofsd
  need_python_client pydo pydo==0.44.0
  need_python_client proxmoxer proxmoxer==2.2.0 requests==2.34.2
  need_packages nix-store=nix-bin fsck.erofs=erofs-utils /bin/bash-static=bash-static git=git mmdebstrap=mmdebstrap
  need_packages /usr/sbin/mkfs.ext4=e2fsprogs ip=iproute2
  need_packages grub-mkimage=grub-common /usr/lib/grub/i386-pc/boot.img=grub-pc-bin \
    /usr/lib/grub/x86_64-efi/kernel.img=grub-efi-amd64-bin
  # A firmware and a boot partition, for the tests that boot whole systems.
  if [ "${CALVE_GUESTS:-}" = 1 ]; then
    need_packages /usr/share/OVMF/OVMF_CODE_4M.fd=ovmf /usr/sbin/mkfs.vfat=dosfstools mcopy=mtools /usr/sbin/sfdisk=fdisk
  fi
  need_newer_nix
}

need_bench_peers() {
  need_packages bwrap=bubblewrap runc=runc systemd-nspawn=systemd-container
}

# The agent and `calve-switch` as they are released, by themselves: built with others, they would get the features that they ask of its dependencies.
build_agent() {
  cargo build --quiet --profile agent --package calve-agent
}

# All programs as they are released, beside each other in `bin_dir release`: build_release [CARGO-ARGUMENT]...
build_release() {
  cargo build --quiet --release --package calve --bins "$@"
  build_agent
  ln -f -t "$(bin_dir release)" "$(bin_dir agent)/calve-agent" "$(bin_dir agent)/calve-switch"
}

# The directory that cargo builds into for this machine: `bin_dir debug`.
bin_dir() {
  echo "$root/target/$(rustc -vV | sed -n 's/^host: //p')/$1"
}
