# Images for providers. The `base-` ones hold a kernel and the agent, and get everything else over the agent's link; the others
# are a whole NixOS with the agent as a service, without a password and without SSH.
{
  nixpkgs,
  pkgs,
  calve,
  agent,
  system,
}:
let
  inherit (pkgs) lib;

  machine =
    modules:
    nixpkgs.lib.nixosSystem {
      inherit system;
      modules = [
        agent
        {
          services.calve-agent.enable = true;
          services.openssh.enable = lib.mkForce false;
          users.mutableUsers = false;
          users.allowNoPasswordLogin = true;
          networking.hostName = lib.mkDefault "";
          system.stateVersion = lib.trivial.release;
        }
      ]
      ++ modules;
    };

  # A disk of its own for formats that no module of nixpkgs makes for a provider.
  disk =
    format:
    let
      nixos = machine [
        "${nixpkgs}/nixos/modules/profiles/qemu-guest.nix"
        {
          boot.loader.grub.device = "/dev/vda";
          boot.growPartition = true;
          fileSystems."/" = {
            device = "/dev/disk/by-label/nixos";
            fsType = "ext4";
            autoResize = true;
          };
        }
      ];
    in
    import "${nixpkgs}/nixos/lib/make-disk-image.nix" {
      inherit lib pkgs format;
      inherit (nixos) config;
      diskSize = "auto";
    };

  # GRUB as Debian's packages lay it out, which is where `calve image build` looks.
  grub = pkgs.runCommand "calve-grub" { } ''
    mkdir -p $out/usr/lib/grub $out/usr/bin
    ln -s ${pkgs.grub2}/lib/grub/i386-pc $out/usr/lib/grub/
    ln -s ${pkgs.grub2_efi}/lib/grub/x86_64-efi $out/usr/lib/grub/
    ln -s ${pkgs.grub2}/bin/grub-mkimage $out/usr/bin/
  '';

  base =
    format:
    pkgs.runCommand "calve-base.${format}" { nativeBuildInputs = [ calve ]; } ''
      export CALVE_HOME=$TMPDIR
      calve image build --format ${format} --kernel ${pkgs.linuxPackages.kernel}/bzImage --grub ${grub} --output $out
    '';
in
{
  base-raw = base "raw";
  base-qcow2 = base "qcow2";

  raw = disk "raw";
  qcow2 = disk "qcow2";

  digitalocean =
    (machine [
      "${nixpkgs}/nixos/modules/virtualisation/digital-ocean-image.nix"
      # The image's own way in; the agent is the only one here.
      {
        virtualisation.digitalOcean = {
          setSshKeys = false;
          setRootPassword = false;
          rebuildFromUserData = false;
        };
      }
    ]).config.system.build.digitalOceanImage;

  proxmox =
    (machine [
      "${nixpkgs}/nixos/modules/virtualisation/proxmox-image.nix"
      # With it the image would leave its network to cloud-init, which the agent is here instead of.
      { proxmox.cloudInit.enable = false; }
    ]).config.system.build.VMA;
}
