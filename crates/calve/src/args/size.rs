//! Sizes: bytes, or K, M, G, T, which are powers of 1024 (`256M` = `256MiB` = 268435456 bytes).

/// Parses a size in bytes. One rule: units are binary; `MB`, which means two things, is refused.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let shift = match unit {
        "" | "B" => 0,
        "K" | "k" | "Ki" | "KiB" => 10,
        "M" | "m" | "Mi" | "MiB" => 20,
        "G" | "g" | "Gi" | "GiB" => 30,
        "T" | "t" | "Ti" | "TiB" => 40,
        _ => return Err(format!("{unit:?} is no unit of size; there are K, M, G and T, powers of 1024")),
    };
    let too_much = || "this is more than any machine has".to_owned();
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(too_much);
    }
    let broken = number.parse::<f64>().map_err(|_| "a size is a number with a unit, e.g. 256M or 1.5G")?;
    if shift == 0 {
        return Err("a number of bytes is whole".to_owned());
    }
    // Exact up to 2^53 bytes, far above any machine.
    let bytes = broken * (1u64 << shift) as f64;
    if bytes > (1u64 << 53) as f64 { Err(too_much()) } else { Ok(bytes as u64) }
}

/// A size for people: `1.5G`, `256M`, `12K`, `7B`.
pub fn show(bytes: u64) -> String {
    for (unit, shift) in [("T", 40), ("G", 30), ("M", 20), ("K", 10)] {
        let tenths = (u128::from(bytes) * 10) >> shift;
        match (tenths / 10, tenths % 10) {
            (0, _) => continue,
            (whole, 0) => return format!("{whole}{unit}"),
            (whole, _) if whole >= 100 => return format!("{whole}{unit}"),
            (whole, tenth) => return format!("{whole}.{tenth}{unit}"),
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        let sizes = ["0", "4096", "256M", "1G", "1GiB", "1.5G", "12k"].map(|text| parse_size(text).unwrap());
        assert_eq!(sizes, [0, 4096, 256 << 20, 1 << 30, 1 << 30, 3 << 29, 12 << 10]);
        assert_eq!([7, 12 << 10, 256 << 20, 3 << 29].map(show), ["7B", "12K", "256M", "1.5G"]);
    }

    #[test]
    fn bad_sizes_get_one_sentence() {
        let sentence = |text| parse_size(text).unwrap_err();
        assert_eq!(sentence("256MB"), "\"MB\" is no unit of size; there are K, M, G and T, powers of 1024");
        assert_eq!(sentence("M"), "a size is a number with a unit, e.g. 256M or 1.5G");
        assert!(sentence("1.2.3G").contains("a number with a unit"));
        assert!(sentence("1.5").contains("whole"));
        assert!(sentence("99999999999T").contains("more than any machine"));
        assert!(sentence("-5M").contains("no unit"));
    }
}
