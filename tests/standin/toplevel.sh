# Sourced by the builders: what a toplevel has of its own. `write_toplevel OUT BASE VERSION`; init, switch and activate name the scripts.
write_toplevel() {
  mkdir -p $1/bin $1/units
  for script in init activate switch; do
    to=$1/$script; [ $script = switch ] && to=$1/bin/switch-to-configuration
    eval "from=\$$script"
    sed "s|@out@|$1|g; s|@base@|$2|g" $from >$to
    chmod 755 $to
  done
  cat >$1/units/standin.service <<UNIT
[Unit]
Description=Says that the stand-in is up
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$2/sw/bin/sh -c 'echo $3 >/run/standin-version; echo stand-in $3 is up with pid 1 systemd'
StandardOutput=journal+console
UNIT
}
