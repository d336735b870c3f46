# Run by nix-build with a static bash and $busybox as the only tools; everything of the toplevel lies in $out.
set -eu
# busybox takes its own name for an applet's: in the store it has another.
first() { (exec -a busybox $busybox "$@"); }
first mkdir -p $out/sw/bin
first cp $busybox $out/sw/bin/busybox
first chmod 755 $out/sw/bin/busybox
for applet in sh ls cp cat mkdir rmdir mount umount tar ln rm mv sed echo chmod cpio gzip find ps kill sleep hostname ip nc httpd readlink sync dd date touch head grep true false test; do
  first ln -s busybox $out/sw/bin/$applet
done
PATH=$out/sw/bin

mkdir $out/rootfs
tar -xf $rootfs -C $out/rootfs
chmod -R u+w $out/rootfs
rm -rf $out/rootfs/var/cache $out/rootfs/var/lib/apt $out/rootfs/boot $out/rootfs/usr/share/doc $out/rootfs/usr/share/perl5 $out/rootfs/usr/lib/udev/hwdb.d $out/rootfs/usr/lib/udev/hwdb.bin
ln -s $out/rootfs/usr/bin/systemctl $out/sw/bin/systemctl
ln -s $out/rootfs/usr/bin/journalctl $out/sw/bin/journalctl

# Configuration: boot to multi-user with nothing that waits for hardware a microVM does not have.
etc=$out/rootfs/etc
echo standin >$etc/hostname
: >$etc/fstab
: >$etc/machine-id
units=$etc/systemd/system
for unit in getty@tty1.service serial-getty@ttyS0.service systemd-udev-trigger.service systemd-udevd.service \
  systemd-udev-settle.service systemd-random-seed.service systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer \
  e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer systemd-update-utmp.service \
  systemd-journal-flush.service systemd-hwdb-update.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
  systemd-firstboot.service systemd-pstore.service; do
  ln -sf /dev/null $units/$unit
done
ln -sf /lib/systemd/system/multi-user.target $units/default.target
mkdir -p $units/multi-user.target.wants
ln -sf ../standin.service $units/multi-user.target.wants/standin.service

# The contract of a toplevel.
cp $kernel $out/kernel
mkdir -p $out/kernel-modules/lib/modules
cp -r $modules $out/kernel-modules/lib/modules/$version
ln -s rootfs/etc $out/etc
echo "standin-$version" >$out/nixos-version
echo -n "x86_64-linux" >$out/system
echo -n "loglevel=4 systemd.show_status=0 standin.marker=1" >$out/kernel-params
. $toplevel
write_toplevel $out $out standin
sed "s|@base@|$out|g" $bootctl >$out/sw/bin/bootctl
chmod 755 $out/sw/bin/bootctl
ln -s init $out/activate.init

# An initrd of its own, as small as can be: it hands over to the root that it finds at /sysroot.
mkdir -p $TMPDIR/initrd/bin && cd $TMPDIR/initrd
cp $busybox bin/busybox && chmod 755 bin/busybox
printf '#!/bin/busybox sh\necho stand-in initrd: no root was prepared\n' >init && chmod 755 init
find . | cpio -o -H newc | gzip -9 >$out/initrd
cd /

cat >$out/boot.json <<JSON
{"org.nixos.bootspec.v1": {"system": "x86_64-linux", "init": "$out/init", "initrd": "$out/initrd", "kernel": "$out/kernel",
 "kernelParams": ["loglevel=4", "systemd.show_status=0", "standin.marker=1"], "label": "stand-in", "toplevel": "$out"}}
JSON
