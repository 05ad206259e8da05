//! Random numbers of the kernel, for names and demonstrations.

use rustix::rand::{GetRandomFlags, getrandom};

use crate::exit::{self, Failure};

/// Sixteen bytes. The kernel gives out up to 256 at once, whole.
///
/// # Errors
/// Exit code 1 where the kernel refuses.
fn bytes() -> Result<[u8; 16], Failure> {
    let mut bytes = [0; 16];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(16) => Ok(bytes),
        Ok(found) => Err(Failure::new(exit::FAILED, format!("found {found} random bytes, due were 16"))),
        Err(error) => Err(Failure::new(exit::FAILED, format!("the kernel gives no random bytes ({error})"))),
    }
}

/// A random UUID (RFC 9562 section 5.4) as text.
///
/// # Errors
/// Exit code 1 where the kernel gives no random bytes.
pub fn uuid() -> Result<String, Failure> {
    Ok(uuid_of(u128::from_be_bytes(bytes()?)))
}

fn uuid_of(random: u128) -> String {
    let version_4 = (random & !(0xf << 76)) | 4 << 76;
    let uuid = (version_4 & !(0b11 << 62)) | 0b10 << 62;
    let digits = format!("{uuid:032x}");
    let [a, b, c, d, e] = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| &digits[range]);
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// Numbers that follow each other without pattern: SplitMix64 (Steele, Lea, Flood 2014). Nothing secret hangs on them.
pub struct Random(u64);

impl Random {
    /// Seeded by the kernel.
    ///
    /// # Errors
    /// Exit code 1 where the kernel gives no random bytes.
    pub fn new() -> Result<Self, Failure> {
        Ok(Self(u128::from_be_bytes(bytes()?) as u64))
    }

    /// From 0 up to, not including, 1.
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_says_that_it_is_random_whatever_the_bytes() {
        assert_eq!(uuid_of(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid_of(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_ne!(uuid().unwrap(), uuid().unwrap());
    }

    #[test]
    fn numbers_spread_over_the_unit_interval() {
        let mut random = Random(7);
        let numbers: Vec<f64> = (0..10_000).map(|_| random.unit()).collect();
        let tenth = numbers.iter().filter(|number| (0.3..0.4).contains(*number)).count();
        assert!(
            numbers.iter().all(|number| (0.0..1.0).contains(number)) && (800..1200).contains(&tenth),
            "{tenth}"
        );
    }
}
