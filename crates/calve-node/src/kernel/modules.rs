//! Which modules a kernel has, and in which order some of them are loaded (`modules.dep(5)`, `depmod(8)`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::ModuleDir;

/// An index of a kernel's modules.
#[derive(Debug, Clone, Default)]
pub struct Modules {
    all_built_in: bool,
    built_in: BTreeSet<String>,
    /// Name to file and the files that it needs, deepest last.
    files: BTreeMap<String, (String, Vec<String>)>,
    /// Name to the names or aliases that are wanted before it.
    before: BTreeMap<String, Vec<String>>,
    aliases: BTreeMap<String, Vec<String>>,
}

/// A module's name from its file's: `virtio-rng.ko.xz` is `virtio_rng`.
pub fn normal_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

impl Modules {
    /// Reads the index in a module directory.
    pub fn read(dir: &ModuleDir) -> io::Result<Self> {
        let text = |name: &str| std::fs::read_to_string(dir.view.resolve(&dir.path.join(name))?);
        let optional = |name: &str| text(name).unwrap_or_default();
        Ok(Self::parse(
            &text("modules.dep")?,
            &optional("modules.builtin"),
            &optional("modules.softdep"),
            &optional("modules.alias"),
        ))
    }

    /// A kernel that needs no modules.
    pub fn all_built_in() -> Self {
        Self { all_built_in: true, ..Self::default() }
    }

    /// Parses the texts of `modules.dep`, `modules.builtin`, `modules.softdep` and `modules.alias`.
    pub fn parse(dep: &str, built_in: &str, soft_dep: &str, alias: &str) -> Self {
        let mut modules = Self::default();
        for (file, needs) in dep.lines().filter_map(|line| line.split_once(':')) {
            let needs = needs.split_ascii_whitespace().map(str::to_owned).collect();
            modules.files.insert(normal_name(file), (file.to_owned(), needs));
        }
        modules.built_in = built_in.lines().map(normal_name).collect();
        for line in soft_dep.lines() {
            let mut words = line.split_ascii_whitespace();
            if words.next() != Some("softdep") {
                continue;
            }
            let Some(name) = words.next() else { continue };
            let before = words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| *word != "post:");
            modules.before.entry(normal_name(name)).or_default().extend(before.map(str::to_owned));
        }
        for line in alias.lines() {
            if let ["alias", alias, module] = line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
                // Aliases with wildcards are for devices.
                if !alias.contains('*') {
                    modules.aliases.entry(alias.replace('-', "_")).or_default().push(module.to_owned());
                }
            }
        }
        modules
    }

    /// Whether the kernel has it, built in or as a module.
    pub fn has(&self, name: &str) -> bool {
        let name = normal_name(name);
        self.all_built_in || self.built_in.contains(&name) || self.files.contains_key(&name)
    }

    /// The files to load for `wanted`, in order, without doubles; names that the kernel has not are answered apart.
    pub fn load_order(&self, wanted: &[&str]) -> (Vec<String>, Vec<String>) {
        let (mut order, mut missing) = (Vec::new(), Vec::new());
        for name in wanted {
            if !self.has(name) {
                missing.push((*name).to_owned());
            }
            self.add(name, &mut order, &mut BTreeSet::new());
        }
        (order, missing)
    }

    fn add(&self, name: &str, order: &mut Vec<String>, seen: &mut BTreeSet<String>) {
        let name = normal_name(name);
        if !seen.insert(name.clone()) {
            return;
        }
        let Some((file, needs)) = self.files.get(&name) else {
            return;
        };
        // depmod writes a module's needs in reverse order of loading.
        for need in needs.iter().rev() {
            self.add(need, order, seen);
        }
        for wanted in self.before.get(&name).into_iter().flatten() {
            self.add_wanted(wanted, order, seen);
        }
        if !order.contains(file) {
            order.push(file.clone());
        }
    }

    /// A soft need is a module's name or an alias. Of an algorithm with several makers, the one for every processor is
    /// enough, and often built in.
    fn add_wanted(&self, wanted: &str, order: &mut Vec<String>, seen: &mut BTreeSet<String>) {
        let wanted = wanted.replace('-', "_");
        let generic = format!("{wanted}_generic");
        if self.has(&wanted) {
            self.add(&wanted, order, seen);
        } else if self.has(&generic) {
            self.add(&generic, order, seen);
        } else {
            for module in self.aliases.get(&wanted).into_iter().flatten() {
                self.add(module, order, seen);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_come_first_and_once() {
        let modules = Modules::parse(
            "k/virtio_ring.ko:\nk/virtio.ko: k/virtio_ring.ko\nk/virtio_blk.ko.xz: k/virtio.ko k/virtio_ring.ko\n\
             k/virtio-rng.ko: k/virtio.ko k/virtio_ring.ko\n",
            "kernel/fs/overlay.ko\n",
            "",
            "",
        );
        let (order, missing) = modules.load_order(&["virtio_blk", "virtio_rng", "overlay", "erofs"]);
        assert_eq!(order, ["k/virtio_ring.ko", "k/virtio.ko", "k/virtio_blk.ko.xz", "k/virtio-rng.ko"]);
        assert_eq!(missing, ["erofs"]);
    }

    #[test]
    fn soft_needs_are_found_by_their_aliases() {
        let modules = Modules::parse(
            "k/libcrc32c.ko:\nk/crc32c_generic.ko:\nk/erofs.ko: k/libcrc32c.ko\n",
            "",
            "# comment\nsoftdep libcrc32c pre: crc32c post: x\n",
            "alias crc32c crc32c_generic\nalias pci:v* y\n",
        );
        assert_eq!(modules.load_order(&["erofs"]).0, ["k/crc32c_generic.ko", "k/libcrc32c.ko", "k/erofs.ko"]);
    }

    #[test]
    fn of_several_makers_of_an_algorithm_the_generic_one_is_enough() {
        let dep = "k/libcrc32c.ko:\nk/crc32c-intel.ko:\n";
        let alias = "alias crc32c crc32c_intel\n";
        let built_in = Modules::parse(dep, "k/crc32c_generic.ko\n", "softdep libcrc32c pre: crc32c\n", alias);
        assert_eq!(built_in.load_order(&["libcrc32c"]).0, ["k/libcrc32c.ko"]);
        let without = Modules::parse(dep, "", "softdep libcrc32c pre: crc32c\n", alias);
        assert_eq!(without.load_order(&["libcrc32c"]).0, ["k/crc32c-intel.ko", "k/libcrc32c.ko"]);
    }

    #[test]
    fn modules_that_need_each_other_do_not_turn_in_circles() {
        let modules = Modules::parse("a.ko: b.ko\nb.ko: a.ko\n", "", "", "");
        assert_eq!(modules.load_order(&["a"]).0, ["b.ko", "a.ko"]);
    }
}
