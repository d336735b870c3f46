#!@base@/sw/bin/sh
# Of bootctl(1) what has an entry tried once: a file stands for the firmware's variable.
[ "${1:-}" = set-oneshot ] || exit 1
echo "${2:-}" >/boot/loader/oneshot
@base@/sw/bin/busybox sync
