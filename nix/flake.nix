# calve for Nix: the programs, the agent as a NixOS module, and images for providers.
#
#   nix build 'git+file:.?dir=nix#calve'              the programs
#   nix build 'git+file:.?dir=nix#base-qcow2'         the base image: kernel and agent, as `calve image build` makes it
#   nix build 'git+file:.?dir=nix#digitalocean'       a whole NixOS with the agent, for DigitalOcean; also proxmox, raw, qcow2
{
  description = "Runs any Nix closure on any machine with one command, and lets go of the machine when its lease ends";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-25.11";

  outputs =
    { self, nixpkgs }:
    let
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system};
      calve = pkgs.callPackage ./package.nix { };
    in
    {
      packages.${system} = {
        inherit calve;
        default = calve;
      }
      // import ./images.nix {
        inherit nixpkgs pkgs calve system;
        agent = self.nixosModules.agent;
      };

      nixosModules.agent =
        { lib, ... }:
        {
          imports = [ ./agent.nix ];
          services.calve-agent.package = lib.mkDefault calve;
        };

      checks.${system}.agent = pkgs.testers.runNixOSTest (import ./test.nix { agent = self.nixosModules.agent; });
    };
}
