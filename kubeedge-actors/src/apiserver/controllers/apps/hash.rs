//! Short hashes of templates, as labels and ends of names.

use serde_json::Value;

/// What hashes are written with: no vowels, nothing that looks like something else.
const ALPHABET: &[u8] = b"bcdf2456789";

/// A hash of `object`, another one for each number of collisions: FNV-1a of its canonical JSON, of 32 bits.
pub(super) fn of(object: &Value, collisions: i64) -> String {
    let mut text = object.to_string();
    if collisions > 0 {
        text.push_str(&collisions.to_string());
    }
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_hash_is_that_of_the_content_and_differs_after_a_collision() {
        let (one, same) = (json!({"a": 1, "b": [2]}), json!({"b": [2], "a": 1}));
        assert_eq!(of(&one, 0), of(&same, 0));
        assert_ne!(of(&one, 0), of(&one, 1));
        assert_ne!(of(&one, 0), of(&json!({"a": 2, "b": [2]}), 0));
        assert!(of(&one, 0).len() <= 10);
    }
}
