//! Random bytes from the kernel (getrandom(2)).

use rustix::rand::{GetRandomFlags, getrandom};

/// `N` random bytes, at most 256: up to that many the kernel gives whole once it has been seeded.
pub fn bytes<const N: usize>() -> [u8; N] {
    const { assert!(N <= 256) };
    let mut bytes = [0; N];
    loop {
        match getrandom(&mut bytes, GetRandomFlags::empty()) {
            Ok(length) if length == N => return bytes,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => unreachable!("getrandom(2) fails on no kernel that calve runs on: {error}"),
        }
    }
}

/// 128 random bits.
pub fn u128() -> u128 {
    u128::from_ne_bytes(bytes())
}
