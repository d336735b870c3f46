#!@out@/sw/bin/sh
# The stand-in's switch: same verbs and exit codes as the real one. What a test leaves in /etc/standin/break is done first: it
# breaks the host, with the verb as $1 and this system as $self.
PATH=@out@/sw/bin
export PATH
self=@out@
verb=${1:-}
[ -e /etc/standin/break ] && . /etc/standin/break
# As the real one does with systemd-boot: an entry for each generation, and the profile's boots.
install_entries() {
  loader=/boot/loader
  [ -d $loader/entries ] || return 0
  for link in /nix/var/nix/profiles/system-*-link; do
    number=${link##*/system-} number=${number%-link} system=$(readlink "$link")
    printf 'title stand-in\nversion Generation %s\nlinux /kernel\ninitrd /initrd\noptions init=%s/init %s\n' \
      "$number" "$system" "$(cat "$system/kernel-params")" >"$loader/entries/nixos-generation-$number.conf"
  done
  now=$(readlink /nix/var/nix/profiles/system) now=${now##*system-} now=${now%-link}
  printf 'timeout 1\ndefault nixos-generation-%s.conf\n' "$now" >$loader/loader.conf.new
  mv $loader/loader.conf.new $loader/loader.conf
  sync
}
activate() { @out@/activate && systemctl daemon-reload && systemctl restart standin.service; }
case "$verb" in
  switch) install_entries && activate ;;
  boot) install_entries ;;
  test) activate ;;
  dry-activate) echo "would activate @out@" ;;
  *) echo "usage: switch-to-configuration switch|boot|test|dry-activate" >&2; exit 1 ;;
esac
