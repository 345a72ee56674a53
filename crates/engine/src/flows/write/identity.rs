//! One spelling for each key: what Postgres reads as the same value must be the same entry, and wait in the same queue.

/// The text that a key has for this value of a key column.
///
/// None: the type has several texts for one value, and only Postgres knows which are the same.
///
/// # Errors
/// Why it is no value of its type.
pub fn canonical(text: &str, kind: &str) -> Option<Result<String, String>> {
    match kind {
        "int2" | "int4" | "int8" => {
            let digits = text.trim();
            let number = digits.strip_prefix('+').unwrap_or(digits).parse::<i64>();
            Some(number.map(|number| number.to_string()).map_err(|_wrong| {
                format!("invalid input syntax for type {kind}: {text:?} is no whole number in decimal digits")
            }))
        }
        "uuid" => Some(uuid(text).ok_or_else(|| format!("invalid input syntax for type uuid: {text:?}"))),
        "text" | "varchar" => Some(Ok(text.to_owned())),
        _ => None,
    }
}

/// Upper case, braces, and hyphens behind any four digits are read (PostgreSQL manual, 8.12).
fn uuid(text: &str) -> Option<String> {
    let inner = text.strip_prefix('{').map_or(Some(text), |inner| inner.strip_suffix('}'))?;
    let digits: String = inner.chars().filter(|one| *one != '-').collect::<String>().to_ascii_lowercase();
    let is_hex = digits.len() == 32 && digits.chars().all(|one| one.is_ascii_hexdigit());
    let part = |from, to| digits.get(from..to);
    is_hex
        .then(|| Some([part(0, 8)?, part(8, 12)?, part(12, 16)?, part(16, 20)?, part(20, 32)?].join("-")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_has_one_text() {
        for text in ["7", "07", " 7", "+7", "007", "7 "] {
            assert_eq!(canonical(text, "int4"), Some(Ok("7".to_owned())), "{text:?}");
        }
        assert_eq!(canonical("-0", "int8"), Some(Ok("0".to_owned())));
        assert!(canonical("7.0", "int8").unwrap().is_err());
        let uuid = "6fa459ea-ee8a-3ca4-894e-db77e160355e";
        for text in [uuid, "6FA459EA-ee8a3ca4894e-db77e160355e", "{6fa459eaee8a3ca4894edb77e160355e}"] {
            assert_eq!(canonical(text, "uuid"), Some(Ok(uuid.to_owned())), "{text}");
        }
        assert!(canonical("6fa459ea", "uuid").unwrap().is_err());
        assert_eq!(canonical(" a ", "text"), Some(Ok(" a ".to_owned())));
        assert_eq!(canonical("1.50", "numeric"), None);
    }
}
