# The programs `calve` and `calve-agent`, which find each other in one directory. Both are static.
{
  lib,
  rustPlatform,
  glibc,
}:
rustPlatform.buildRustPackage {
  pname = "calve";
  version = (lib.importTOML ../Cargo.toml).workspace.package.version;

  src = lib.cleanSource ../.;
  cargoLock.lockFile = ../Cargo.lock;

  # `.cargo/config.toml` links everything statically.
  buildInputs = [ glibc.static ];
  cargoBuildFlags = [
    "--package=calve"
    "--package=calve-agent"
  ];

  # The tests boot guests and want the network of their own host.
  doCheck = false;

  meta = {
    description = "Runs any Nix closure on any machine with one command, and lets go of the machine when its lease ends";
    license = lib.licenses.asl20;
    mainProgram = "calve";
    platforms = [ "x86_64-linux" ];
  };
}
