# The agent as a service of a NixOS that a provider boots: it joins the server that its user data name, and powers the machine
# off at the end of its lease.
{
  config,
  lib,
  ...
}:
let
  cfg = config.services.calve-agent;
in
{
  options.services.calve-agent = {
    enable = lib.mkEnableOption "calve's agent, which joins the server that this machine's user data name";

    package = lib.mkOption {
      type = lib.types.package;
      description = "The package that holds `calve-agent`.";
    };

    userData = lib.mkOption {
      type = lib.types.str;
      default = "provider";
      example = "/etc/calve/user-data.json";
      description = ''
        A file with the user data, or `provider`: an attached volume labelled cidata or config-2, or the provider's metadata
        service, whichever has them first.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    systemd.services.calve-agent = {
      description = "Agent of calve";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      serviceConfig = {
        ExecStart = "${cfg.package}/bin/calve-agent service --user-data ${lib.escapeShellArg cfg.userData} --key-file /var/lib/calve-agent/key";
        # Its key is made here, read by nobody else, and found again after a restart.
        StateDirectory = "calve-agent";
        StateDirectoryMode = "0700";
        Restart = "always";
        RestartSec = 1;
        # What it runs is its machine's: it ends with the machine, not with the service's memory limits.
        OOMScoreAdjust = -900;
      };
    };

    # Volumes with user data.
    boot.supportedFilesystems = {
      iso9660 = lib.mkDefault true;
      vfat = lib.mkDefault true;
    };
  };
}
