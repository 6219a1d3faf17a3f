//! Sizes on the command line.

/// Reads `2MB`, `1.5GiB`, `900kB`, `1G` or a number of bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let at = text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len());
    let unit = match text[at..].trim().to_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        other => {
            return Err(format!(
                "there is no unit `{other}`: use kB, MB, GB, KiB, MiB or GiB"
            ));
        }
    };
    match text[..at].trim().parse::<f64>() {
        Ok(x) if x.is_finite() && x > 0.0 && x * unit < 1e15 => Ok((x * unit) as u64),
        _ => Err("give a size above zero, as 2MB or 900kB".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn sizes() {
        let sizes = ["512M", "1G", "2.5GB", "100", "2 KiB"].map(|s| parse_size(s).unwrap());
        assert_eq!(
            sizes,
            [512_000_000, 1_000_000_000, 2_500_000_000, 100, 2048]
        );
        for wrong in ["much", "-1G", "0", "3TB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
