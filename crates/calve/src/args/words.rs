//! A command written as one argument, split into words.

/// Splits at blanks; single quotes keep everything, double quotes keep blanks, a backslash keeps the next character.
/// Nothing is expanded: there may be no shell in the machine.
pub fn split_words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => {
                let next = chars.next().ok_or("the command ends in a backslash")?;
                word.get_or_insert_default().push(next);
            }
            (c, Some(open)) if c == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        return Err(format!("the command has an opening {open} without a closing one"));
    }
    words.extend(word);
    if words.is_empty() { Err("the command is empty".to_owned()) } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_keep_words_together() {
        assert_eq!(
            split_words(r#"curl -f 'a  b' "c\"d" e\ f """#).unwrap(),
            ["curl", "-f", "a  b", "c\"d", "e f", ""]
        );
        for bad in ["", "  ", "'a", "a\\"] {
            assert!(split_words(bad).is_err(), "{bad:?}");
        }
    }
}
