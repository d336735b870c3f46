//! calve inside of a guest: a host with cgroups of version 2, whatever the host of the tests has.

use e2e::{Home, bin_dir};

/// Gives the guest a root that sandboxes can be made in, and runs `nested` there. The guest's own root is its initramfs, out
/// of which nothing can pivot (`pivot_root(2)`, EINVAL).
const ENTER: &str = r#"
store=$1; PATH=$store/bin; alias b=busybox
b mkdir /new; b mount -t tmpfs new /new; cd /new
b mkdir -p app/bin bin proc sys dev nix/store tmp etc run root var/tmp
b cp $store/bin/busybox app/bin/; b cp $store/bin/busybox $store/bin/calve-agent bin/
for dir in proc sys dev nix/store; do bin/busybox mount --move /$dir /new/$dir; done
bin/busybox mount --move /new /
exec bin/busybox chroot . /bin/busybox sh $store/nested $store
"#;

const NESTED: &str = r#"
export PATH=$1/bin HOME=/tmp CALVE_HOME=/tmp/calve CALVE_AGENT=/bin/calve-agent
run() { calve run --memory 32M --pids 8 --cpus 0.5 /app/bin/busybox -- sh -c "$1"; echo "code $?"; }
busybox cat /sys/fs/cgroup/cgroup.controllers
run 'exit 5'
run 'busybox head -c 40m /dev/zero | busybox tail'
run 'for i in 1 2 3 4 5 6 7 8 9; do busybox sleep 1 & done; wait'
calve run -d --name held --memory 32M --pids 8 --cpus 0.5 /app/bin/busybox -- sleep 1000
until calve status held --json | busybox grep -q '"running"'; do busybox sleep 0.1; done
for file in memory.max cpu.max; do busybox cat /sys/fs/cgroup/calve/*/$file; done
calve rm held
busybox find /sys/fs/cgroup/calve -type d -mindepth 1
"#;

#[test]
fn limits_hold_on_a_host_with_cgroups_of_version_2() {
    let home = Home::new();
    let app = home.path().join("nested-calve");
    std::fs::create_dir_all(app.join("bin")).unwrap();
    for binary in ["calve", "calve-agent"] {
        std::fs::copy(bin_dir().join(binary), app.join("bin").join(binary)).unwrap();
    }
    let busybox = app.join("bin/busybox");
    std::fs::copy("/bin/busybox", &busybox).unwrap();
    std::fs::write(app.join("enter"), ENTER).unwrap();
    std::fs::write(app.join("nested"), NESTED).unwrap();
    let script =
        "exe=$(busybox readlink /proc/self/exe); store=${exe%/bin/busybox}; exec sh $store/enter $store";
    let args =
        ["run", "--driver", "qemu", "--memory", "512M", busybox.to_str().unwrap(), "--", "sh", "-c", script];
    let ran = home.run(&args);
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert!(lines[0].contains("memory") && lines[0].contains("pids"), "{ran:?}");
    let expected = ["code 5", "code 137", "code 2", "held", "33554432", "50000 100000", "held"];
    assert_eq!(lines[1..], expected, "{ran:?}");
    assert!(ran.stderr.contains("killed for want of memory"), "{ran:?}");
    assert!(ran.stderr.contains("ended by a limit"), "{ran:?}");
}
