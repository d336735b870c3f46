# A stand-in for a NixOS toplevel, from the distribution's packages; see README.md.
{ rootfs, bash, busybox, kernel, modules, version }:
derivation {
  name = "nixos-system-standin-debian";
  system = builtins.currentSystem;
  builder = bash;
  args = [ ./builder.sh ];
  inherit rootfs busybox kernel modules version;
  init = ./init.sh;
  activate = ./activate.sh;
  bootctl = ./bootctl.sh;
  toplevel = ./toplevel.sh;
  switch = ./switch-to-configuration.sh;
}
