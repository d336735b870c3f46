//! Host name, loopback, and the network card behind which QEMU answers for the host (`netdevice(7)`, `rtnetlink(7)`).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::dhcp::Lease;
use super::sources::Plan;

/// QEMU's user network gives every guest the same addresses (QEMU `docs/system/devices/net.rst`).
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// An address of RFC 3927 that lasts until the provider has told the real one; providers pass it to their metadata
/// service alone.
const LINK_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 16);
const LINK_LOCAL_NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 0, 0);
/// Where QEMU answers for the host's name servers.
pub(super) const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// Sets the host name.
pub(super) fn name_host(hostname: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(hostname.as_bytes())?)
}

/// Brings the loopback up. Through the same one more can be set up; closing it takes a start in emulation 200 blocks of
/// code, so let that wait.
pub(super) fn loopback() -> io::Result<Interfaces> {
    let interfaces = Interfaces::open()?;
    interfaces.bring_up("lo")?;
    Ok(interfaces)
}

/// Gives the first network card its address and makes QEMU its gateway.
pub(super) fn through_host(interfaces: &Interfaces) -> io::Result<()> {
    through(interfaces, ADDRESS, NETMASK, GATEWAY)
}

/// Gives the first network card this address and gateway.
pub(super) fn through(
    interfaces: &Interfaces,
    address: Ipv4Addr,
    netmask: Ipv4Addr,
    gateway: Ipv4Addr,
) -> io::Result<()> {
    give(interfaces, address, netmask)?;
    interfaces.add_default_route(gateway)
}

/// Gives the first network card what was planned for it; where nothing was, what DHCP says. Answers with who knows names, and with
/// the lease that is to be kept.
pub(super) fn by_plan(
    interfaces: &Interfaces,
    plan: Option<Plan>,
) -> anyhow::Result<(Vec<IpAddr>, Option<Lease>)> {
    if let Some(plan) = plan {
        take(interfaces, &plan)?;
        return Ok((plan.name_servers, None));
    }
    let card = first_card()?;
    // The address for the metadata service would be the sender of what DHCP is asked. None has no netmask either.
    interfaces.set_address(&card, libc::SIOCSIFADDR, Ipv4Addr::UNSPECIFIED)?;
    interfaces.bring_up(&card)?;
    let lease = Lease::ask(&card, hardware_address(&card)?)?;
    take(interfaces, lease.plan())?;
    Ok((lease.plan().name_servers.clone(), Some(lease)))
}

/// Keeps the address that DHCP gave to the first network card, in a thread of its own.
pub(super) fn keep(lease: Lease) {
    let taking = |plan: Option<&Plan>| -> io::Result<()> {
        let interfaces = Interfaces::open()?;
        match plan {
            Some(plan) => take(&interfaces, plan),
            None => interfaces.set_address(&first_card()?, libc::SIOCSIFADDR, Ipv4Addr::UNSPECIFIED),
        }
    };
    std::thread::spawn(move || {
        lease.keep(|plan| {
            if let Err(error) = taking(plan) {
                eprintln!("calve-agent: the network card cannot be given its address: {error}");
            }
        });
    });
}

fn take(interfaces: &Interfaces, plan: &Plan) -> io::Result<()> {
    match plan.gateway {
        Some(gateway) => through(interfaces, plan.address, plan.netmask, gateway),
        None => give(interfaces, plan.address, plan.netmask),
    }
}

/// As the kernel shows it: six bytes in hexadecimal digits, with colons.
fn hardware_address(card: &str) -> io::Result<[u8; 6]> {
    let text = fs::read_to_string(format!("/sys/class/net/{card}/address"))?;
    let bytes: Option<Vec<u8>> =
        text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Gives the first network card an address by which the provider's metadata service can be asked, and nobody else.
pub(super) fn link_local(interfaces: &Interfaces) -> io::Result<()> {
    give(interfaces, LINK_LOCAL, LINK_LOCAL_NETMASK)
}

fn give(interfaces: &Interfaces, address: Ipv4Addr, netmask: Ipv4Addr) -> io::Result<()> {
    let card = first_card()?;
    interfaces.set_address(&card, libc::SIOCSIFADDR, address)?;
    interfaces.set_address(&card, libc::SIOCSIFNETMASK, netmask)?;
    interfaces.bring_up(&card)
}

/// In the order of their names: the first is the public one.
fn first_card() -> io::Result<String> {
    fs::read_dir("/sys/class/net")?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != "lo")
        .min()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no network card is there"))
}

/// The network's interfaces.
pub(super) struct Interfaces {
    socket: OwnedFd,
}

impl Interfaces {
    fn open() -> io::Result<Self> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket })
    }

    fn bring_up(&self, name: &str) -> io::Result<()> {
        let mut request = request_for(name)?;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.control(libc::SIOCSIFFLAGS, &request)
    }

    fn set_address(&self, name: &str, what: libc::Ioctl, address: Ipv4Addr) -> io::Result<()> {
        let mut request = request_for(name)?;
        request.ifr_ifru.ifru_addr = socket_address(address);
        self.control(what, &request)
    }

    fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: an all-zero route is a valid value of this plain C structure.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        match self.control(libc::SIOCADDRT, &route) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            added => added,
        }
    }

    fn control<T>(&self, request: libc::Ioctl, argument: &T) -> io::Result<()> {
        // SAFETY: every caller passes the structure that its request reads (`netdevice(7)`), and the kernel only reads it.
        match unsafe { libc::ioctl(self.socket.as_raw_fd(), request, std::ptr::from_ref(argument)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn request_for(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an all-zero request is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // The layout of `sockaddr_in` (`ip(7)`): family, port, address.
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from.cast_signed();
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}
