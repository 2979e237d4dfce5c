//! What a cache or topic may be called.

/// Longest name of a cache: it is part of trigger names, which Postgres cuts at 63 bytes.
const MAX_NAME_BYTES: usize = 32;

/// # Errors
/// What is wrong with the name of a cache.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if plain && (1..=MAX_NAME_BYTES).contains(&name.len()) {
        Ok(())
    } else {
        Err(format!("{name:?} is not a name: 1 to {MAX_NAME_BYTES} letters, digits, _ or -"))
    }
}
