# Another version of the stand-in; see README.md.
{ base, bash, version }:
derivation {
  name = "nixos-system-standin-${version}";
  system = builtins.currentSystem;
  builder = bash;
  args = [ ./variant.sh ];
  base = builtins.storePath base;
  inherit version;
  init = ./init.sh;
  activate = ./activate.sh;
  switch = ./switch-to-configuration.sh;
  toplevel = ./toplevel.sh;
}
