//! Which cgroup hierarchies this process sees, and where it stands in each (`cgroups(7)`, `proc_pid_mountinfo(5)`).

use std::fs;
use std::path::{Path, PathBuf};

use super::Controller;

/// The cgroup hierarchies of this host as this process sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    v1: Vec<Mounted>,
    v2: Option<Mounted>,
}

/// One hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// This process's own directory in it, below the mount point.
    pub own: PathBuf,
    /// Controllers in it.
    pub controllers: Vec<String>,
}

impl Mounted {
    /// Directories in which a cgroup may be made: the top, then each one down to this process's own. The highest that
    /// allows it is the best, because it holds no processes and ends with no session.
    pub fn candidates(&self) -> Vec<PathBuf> {
        let below = self.own.strip_prefix(&self.mount_point).unwrap_or(Path::new(""));
        let mut at = self.mount_point.clone();
        let mut candidates = vec![at.clone()];
        for part in below {
            at.push(part);
            candidates.push(at.clone());
        }
        candidates
    }
}

impl Hierarchies {
    /// Those of the running host; none where `/proc` cannot be read.
    pub fn of_host() -> Self {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        let v2_controllers = |mount: &Path| read(mount.join("cgroup.controllers"));
        Self::parse(&read("/proc/self/mountinfo".into()), &read("/proc/self/cgroup".into()), v2_controllers)
    }

    fn parse(mountinfo: &str, own: &str, v2_controllers: impl Fn(&Path) -> String) -> Self {
        let mut found = Self { v1: Vec::new(), v2: None };
        for mount in mountinfo.lines().filter_map(MountLine::parse) {
            let mount_point = PathBuf::from(&mount.mount_point);
            match mount.fs_type {
                "cgroup2" if found.v2.is_none() => {
                    let controllers = words(&v2_controllers(&mount_point), ' ');
                    let own = own_dir(own, |names| names.is_empty(), &mount);
                    found.v2 = Some(Mounted { mount_point, own, controllers });
                }
                "cgroup" => {
                    let controllers = words(mount.super_options, ',');
                    let named = |names: &str| {
                        !names.is_empty() && words(names, ',').iter().all(|n| controllers.contains(n))
                    };
                    let own = own_dir(own, named, &mount);
                    found.v1.push(Mounted { mount_point, own, controllers });
                }
                _ => {}
            }
        }
        found
    }

    /// Whether the controllers are where a user may be given some of them.
    pub fn v2_delegates(&self) -> bool {
        self.v2_has(Controller::Memory)
    }

    pub(super) fn v2(&self) -> Option<&Mounted> {
        self.v2.as_ref()
    }

    pub(super) fn v2_has(&self, controller: Controller) -> bool {
        self.v2.as_ref().is_some_and(|v2| v2.controllers.iter().any(|name| name == controller.as_str()))
    }

    pub(super) fn v1(&self, controller: Controller) -> Option<&Mounted> {
        self.v1.iter().find(|v1| v1.controllers.iter().any(|name| name == controller.as_str()))
    }
}

struct MountLine<'a> {
    root: &'a str,
    mount_point: String,
    fs_type: &'a str,
    super_options: &'a str,
}

impl<'a> MountLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        let (root, mount_point) = (left.nth(3)?, left.next()?);
        let mut right = right.split(' ');
        let (fs_type, super_options) = (right.next()?, right.nth(1)?);
        Some(Self { root, mount_point: unescape(mount_point), fs_type, super_options })
    }
}

/// Spaces and the like stand as three octal digits in mountinfo.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

/// The directory of this process in the mounted hierarchy; its mount point where it stands outside of what is mounted.
fn own_dir(cgroup_file: &str, names: impl Fn(&str) -> bool, mount: &MountLine) -> PathBuf {
    let line = cgroup_file.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (listed, path) = rest.split_once(':')?;
        names(listed).then_some(path)
    });
    let below = line.and_then(|path| Path::new(path).strip_prefix(mount.root).ok());
    Path::new(&mount.mount_point).join(below.unwrap_or(Path::new("")))
}

fn words(text: &str, separator: char) -> Vec<String> {
    text.split(separator).map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_shows_each_controller_where_it_is() {
        let mounts = "\
30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
";
        let own = "4:memory:/a/b\n3:cpu,cpuacct:/\n1:name=systemd:/\n0::/user.slice\n";
        let host = Hierarchies::parse(mounts, own, |_| "hugetlb pids\n".to_owned());
        assert!(host.v2_has(Controller::Pids) && !host.v2_has(Controller::Memory));
        assert_eq!(host.v2().unwrap().own, Path::new("/sys/fs/cgroup/unified/user.slice"));
        assert_eq!(host.v1(Controller::Cpu).unwrap().mount_point, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        let memory = host.v1(Controller::Memory).unwrap();
        assert_eq!(
            memory.candidates(),
            ["/sys/fs/cgroup/my memory", "/sys/fs/cgroup/my memory/a", "/sys/fs/cgroup/my memory/a/b"]
                .map(PathBuf::from)
        );
        assert_eq!(host.v1(Controller::Pids), None);
    }

    #[test]
    fn a_container_stands_below_the_root_of_its_mount() {
        let mounts = "33 30 0:29 /docker/c1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let host = Hierarchies::parse(mounts, "4:memory:/docker/c1/x\n", |_| String::new());
        assert_eq!(host.v1(Controller::Memory).unwrap().own, Path::new("/sys/fs/cgroup/memory/x"));
    }
}
