//! Entity tags that a client has, as RFC 9110 writes them (8.8.3, 13.1.2): `"a"`, `W/"a"`, several with commas between
//! them, or `*`. What is between quotes may be a comma too.

/// What web servers add to the tag of an answer that they compress on its way.
const CODINGS: [&[u8]; 4] = [b"-gzip", b"-br", b"-zstd", b"-deflate"];

/// Whether one line of `if-none-match` names `tag`, as `W/` or not. Behind what can't be read nothing is looked at.
pub(super) fn names(line: &[u8], tag: &[u8]) -> bool {
    if line.trim_ascii() == b"*" {
        return true;
    }
    let mut rest = line;
    while let Some((given, after)) = next(rest) {
        if is(given, tag) {
            return true;
        }
        rest = after;
    }
    false
}

/// The first of a list, with its quotes, and what follows.
fn next(list: &[u8]) -> Option<(&[u8], &[u8])> {
    let begins = list.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b','))?;
    let list = &list[begins..];
    let list = list.strip_prefix(b"W/").unwrap_or(list);
    let inside = list.strip_prefix(b"\"")?;
    let length = inside.iter().position(|byte| *byte == b'"')?;
    let (given, after) = list.split_at(length + 2);
    // What follows is the next one's, or none's.
    matches!(after.trim_ascii_start().first(), None | Some(b',')).then_some((given, after))
}

fn is(given: &[u8], tag: &[u8]) -> bool {
    given == tag
        || without_end(given)
            .zip(without_end(tag))
            .and_then(|(given, tag)| given.strip_prefix(tag))
            .is_some_and(|coding| CODINGS.contains(&coding))
}

fn without_end(quoted: &[u8]) -> Option<&[u8]> {
    quoted.strip_suffix(b"\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_however_it_is_listed() {
        for line in [
            r#""ab""#,
            r#"W/"ab""#,
            r#"  "ab"  "#,
            r#""x","ab""#,
            r#""x" , W/"ab","y""#,
            r#""x,y", "ab""#,
            r#",,"ab","#,
            r#""ab-gzip""#,
            r#"W/"ab-gzip""#,
            r#""ab-br""#,
            "*",
            " * ",
            "\"\t\", \"ab\"",
            r#""","ab""#,
        ] {
            assert!(names(line.as_bytes(), b"\"ab\""), "{line}");
        }
    }

    #[test]
    fn what_is_inside_of_another_tag_is_none() {
        for line in [
            r#""a,*,b""#,
            r#""x,"#,
            r#""x, \"ab\"""#,
            r#"ab"#,
            r#""ab"#,
            r#"x"ab""#,
            r#""x"y, "ab""#,
            r#"w/"ab""#,
            r#""ab-zip""#,
            r#""ab-gzip-gzip""#,
            r#""-gzip""#,
            r#""AB""#,
            r#"*, "x""#,
            "",
            ",",
        ] {
            assert!(!names(line.as_bytes(), b"\"ab\""), "{line}");
        }
    }
}
