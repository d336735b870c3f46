# The programs `calve`, `calve-agent` and `calve-switch`, which find each other in one directory. All are static.
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
  cargoBuildFlags = [ "--package=calve" ];

  # The machine's side by itself, and small: its profile in `Cargo.toml`.
  postBuild = "cargo build --frozen --profile agent --package calve-agent";
  postInstall = "install -Dm755 -t $out/bin target/*/agent/calve-agent target/*/agent/calve-switch";

  # The tests boot guests and want the network of their own host.
  doCheck = false;

  meta = {
    description = "Runs any Nix closure on any machine with one command, and lets go of the machine when its lease ends";
    license = lib.licenses.asl20;
    mainProgram = "calve";
    platforms = [ "x86_64-linux" ];
  };
}
