#!@base@/sw/bin/sh
# Of bootctl(1) what has an entry tried once: a file stands for the firmware's variable, where there is none.
[ ! -d /sys/firmware/efi ] || exec /usr/bin/bootctl "$@"
[ "${1:-}" = set-oneshot ] || exit 1
echo "${2:-}" >/boot/loader/oneshot
@base@/sw/bin/busybox sync
