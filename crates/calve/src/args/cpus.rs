//! CPUs: `2`, `0.5`, `1.25`.

/// Most CPUs of one machine: more than any host has, so that a slip of the finger is caught here.
const CPUS_MAX: u32 = 4096;

/// Parses a number of CPUs with up to three decimals, into thousandths.
pub fn parse_cpus(text: &str) -> Result<u32, String> {
    let form = || "a number of CPUs looks like 2, 0.5 or 1.25".to_owned();
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if !digits(whole) || !digits(decimals) {
        return Err(form());
    }
    if decimals.len() > 3 {
        return Err("CPUs are counted in thousandths: at most three decimals".to_owned());
    }
    let whole: u32 = whole.parse().ok().filter(|n| *n <= CPUS_MAX).ok_or("no host has that many CPUs")?;
    let thousandths: u32 = format!("{decimals:0<3}").parse().map_err(|_| form())?;
    match whole * 1000 + thousandths {
        0 => Err("a machine needs some CPU, e.g. 0.5".to_owned()),
        milli => Ok(milli),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_thousandths() {
        assert_eq!(["2", "0.5", "1.25", "0.001"].map(|text| parse_cpus(text).unwrap()), [2000, 500, 1250, 1]);
        for bad in ["0", "", ".5", "1.", "-1", "1.2345", "two", "99999", "1e3"] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
    }
}
