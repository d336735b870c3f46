#!@out@/sw/bin/sh
# The stand-in's switch: same verbs and exit codes as the real one.
PATH=@out@/sw/bin
case "${1:-}" in
  switch|test) @out@/activate && cp -a @out@/rootfs/etc/systemd/system/. /etc/systemd/system/ && systemctl daemon-reload ;;
  boot) : ;;
  dry-activate) echo "would activate @out@" ;;
  *) echo "usage: switch-to-configuration switch|boot|test|dry-activate" >&2; exit 1 ;;
esac
