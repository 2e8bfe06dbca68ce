//! Sizes as people write and read them: `64G` in, `64.0 GiB` out. Powers of 1024 only.

/// Parses `4096`, `64K`, `1.5G`, `2T`, with an optional `iB` or `B` after the letter.
pub fn parse(text: &str) -> Result<u64, String> {
    let t = text.trim();
    let digits = t.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(t.len());
    let (number, unit) = t.split_at(digits);
    let unit = unit.trim().trim_end_matches("iB").trim_end_matches('B');
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return Err(format!("'{text}' is no size; write it like 512M, 64G or 2T")),
    };
    let value: f64 = number.parse().map_err(|_| format!("'{text}' is no size; write it like 512M, 64G or 2T"))?;
    let bytes = value * (1u64 << shift) as f64;
    if bytes > 9e18 {
        return Err(format!("'{text}' is too large"));
    }
    Ok(bytes as u64)
}

/// `bytes` with three digits or so and a binary unit.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (text, bytes, out) in [
            ("0", 0, "0 B"),
            ("4096", 4096, "4.0 KiB"),
            ("64K", 65536, "64.0 KiB"),
            ("1.5G", 3 << 29, "1.5 GiB"),
            ("2TiB", 2 << 40, "2.0 TiB"),
            ("1024m", 1 << 30, "1.0 GiB"),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
            assert_eq!(human(bytes), out, "{text}");
        }
        for text in ["", "x", "12Q", "G", "1..5G", "-1", "99999P"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
