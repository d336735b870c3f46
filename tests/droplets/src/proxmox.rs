//! Machines of Proxmox VE: what they shall be stands on a volume that is in a drive of theirs.

use proxmox_emulator::{Backing, Vm};

use crate::{Guests, Source};

impl Backing for Guests {
    fn started(&self, vm: &Vm, volumes: &[(String, Vec<u8>)]) {
        let put = |(slot, bytes): &(String, Vec<u8>)| {
            // The drives of these guests are SCSI's, as the emulator's templates have them.
            assert!(slot.starts_with("scsi"), "VM {} has a volume in {slot}", vm.vmid);
            let file = self.dir.join(format!("volume-{}-{slot}", vm.vmid));
            std::fs::write(&file, bytes).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            file
        };
        self.start(vm.vmid, Source::Volumes(volumes.iter().map(put).collect()));
    }

    fn stopped(&self, vmid: u64) {
        self.end(vmid);
    }

    fn is_running(&self, vmid: u64) -> bool {
        Guests::is_running(self, vmid)
    }
}
