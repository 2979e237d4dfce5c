//! URLs with signs in them that end a part of it: a password is often written as it is.

/// What to do with them.
pub(crate) const ENCODE: &str =
    "write `#` as %23, `/` as %2F, `?` as %3F and `@` as %40 in a user and a password";

/// Whether a sign in the user or the password ends the address. Then what follows it is taken for a path or a query, and
/// what is before it for a host: the start of a password may be one.
pub(crate) fn is_cut(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (address, path) = place.split_once('/').unwrap_or((place, ""));
    let user = address.contains('@');
    // A parameter may hold one, and then it has a name.
    let unnamed = query.split_once('@').is_some_and(|(before, _)| !before.contains('='));
    path.contains('@') || (!user && (fragment.contains('@') || unnamed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_ends_inside_of_a_password_is_found() {
        for url in [
            "redis://:pa/ss@h:1/0",
            "redis://:12/ss@h",
            "redis://u:p#x@h",
            "redis://u:p?x@h",
            "postgres://u:12?x@h:1/db",
            "postgres://u:a@b/c@h/db",
            "postgres://u:p/x?y#z@h/db",
        ] {
            assert!(is_cut(url), "{url}");
        }
        for url in [
            "redis://h",
            "redis://:p@h:1/0",
            "rediss://h/#insecure",
            "redis://u:p%2Fx@h",
            "postgres://u:p@h/db?application_name=a@b",
            "postgres://h/db?user=a@b",
            "postgres://u:p@x@h/db",
            "postgres://u@[::1]:1/db",
            "",
        ] {
            assert!(!is_cut(url), "{url}");
        }
    }
}
