# The agent's service comes up on a NixOS, finds its user data in a file, makes a key that nobody else can read, and keeps
# dialling a server that is not there.
{ agent }:
{
  name = "calve-agent";

  nodes.machine =
    { pkgs, ... }:
    {
      imports = [ agent ];
      services.calve-agent = {
        enable = true;
        userData = toString (
          pkgs.writeText "user-data" (
            builtins.toJSON {
              calve = 2;
              name = "machine";
              machine = "01a1fdff29adccab608a2f771e4d6bc8";
              server = "127.0.0.1:7077";
              fingerprint = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";
              join = "0123456700112233445566778899aabbccddeeff";
              deadline_unix_ms = null;
              grace_ms = 0;
            }
          )
        );
      };
    };

  testScript = ''
    machine.wait_for_unit("calve-agent.service")
    machine.wait_for_file("/var/lib/calve-agent/key")
    machine.succeed("test $(stat -c %a /var/lib/calve-agent/key) = 600")
    machine.fail("ss -tlnp | grep -q sshd")
  '';
}
