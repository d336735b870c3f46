# Run by nix-build: another version of the stand-in, which takes all that is large from the first.
set -eu
PATH=$base/sw/bin
mkdir $out
for part in kernel kernel-modules kernel-params initrd rootfs etc sw system; do ln -s $base/$part $out/$part; done
echo "standin-$version" >$out/nixos-version
. $toplevel
write_toplevel $out $base $version
