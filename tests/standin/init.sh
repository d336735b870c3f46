#!@out@/sw/bin/sh
# Stage 2 of the stand-in: a root with /nix/store is there; make the rest and become systemd.
PATH=@base@/sw/bin
export PATH
mkdir -p /proc /sys /dev /run /tmp /root /var /etc
[ -e /proc/1 ] || mount -t proc proc /proc
[ -e /sys/kernel ] || mount -t sysfs sysfs /sys
[ -e /dev/null ] || mount -t devtmpfs devtmpfs /dev
# Before systemd does it, which would hide what is said there of the system.
grep -q " /run " /proc/mounts || mount -t tmpfs -o mode=755 tmpfs /run
[ -e /etc/standin/break-boot ] && . /etc/standin/break-boot
if [ ! -e /etc/standin ]; then
  cp -a @base@/rootfs/etc/. /etc/
  cp -a @base@/rootfs/var/. /var/
  chmod -R u+w /etc /var
  mkdir -p /etc/standin
fi
# Whoever made the root may have made empty directories for these.
rmdir /usr /bin /sbin /lib /lib64 2>/dev/null
[ -e /usr ] || ln -s @base@/rootfs/usr /usr
for dir in bin sbin lib lib64; do [ -e /$dir ] || ln -s usr/$dir /$dir; done
chmod 1777 /tmp
@out@/activate
ln -sfn @out@ /run/booted-system
exec /usr/lib/systemd/systemd "$@"
