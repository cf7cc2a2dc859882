//! How tables, records and chunks are laid out in the one ordered key space of the engine.
//!
//! | key | value |
//! |---|---|
//! | `0x00 header` | format and number of the last commit |
//! | `0x01 len(table) table key` | a record, or the head of a chunked one |
//! | `0x02 len(table) table len(key) key generation index` | one chunk of a large value |
//!
//! Chunks have a leading byte of their own: no scan of a table can meet one.

use std::ops::Range;

/// The store's own record.
pub(crate) const HEADER: &[u8] = b"\x00header";

const RECORD: u8 = 1;
const CHUNK: u8 = 2;

fn table_prefix(space: u8, table: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(table.len() + 64);
    key.push(space);
    key.extend_from_slice(&(table.len() as u32).to_be_bytes());
    key.extend_from_slice(table.as_bytes());
    key
}

/// Where `key` of `table` stands. With an empty key: the prefix of all records of the table.
pub(crate) fn record(table: &str, key: &[u8]) -> Vec<u8> {
    let mut full = table_prefix(RECORD, table);
    full.extend_from_slice(key);
    full
}

/// All records of all tables.
pub(crate) fn all_records() -> Vec<u8> {
    vec![RECORD]
}

/// Takes a record's key apart again: table and key. `None` for anything else.
pub(crate) fn split_record(full: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = full.strip_prefix(&[RECORD])?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*len) as usize)
}

/// The prefix of all chunks of a record, whatever their generation.
pub(crate) fn chunks_of(record_key: &[u8]) -> Vec<u8> {
    let Some((table, key)) = split_record(record_key) else { return vec![CHUNK, 0xff] };
    let mut full = Vec::with_capacity(record_key.len() + 20);
    full.push(CHUNK);
    full.extend_from_slice(&(table.len() as u32).to_be_bytes());
    full.extend_from_slice(table);
    full.extend_from_slice(&(key.len() as u32).to_be_bytes());
    full.extend_from_slice(key);
    full
}

/// The prefix of the chunks that one commit wrote.
pub(crate) fn generation(record_key: &[u8], generation: u64) -> Vec<u8> {
    let mut full = chunks_of(record_key);
    full.extend_from_slice(&generation.to_be_bytes());
    full
}

/// One chunk.
pub(crate) fn chunk(record_key: &[u8], generation_number: u64, index: u32) -> Vec<u8> {
    let mut full = generation(record_key, generation_number);
    full.extend_from_slice(&index.to_be_bytes());
    full
}

/// The keys that start with `prefix` and are not before `from`, as a half-open range; an empty `end` is "no end".
pub(crate) fn range(prefix: &[u8], from: &[u8]) -> Range<Vec<u8>> {
    let start = if from > prefix { from.to_vec() } else { prefix.to_vec() };
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_range_ends_right_behind_the_prefix() {
        assert_eq!(range(b"ab", b""), b"ab".to_vec()..b"ac".to_vec());
        assert_eq!(range(b"ab", b"abq"), b"abq".to_vec()..b"ac".to_vec());
        assert_eq!(range(b"a\xff", b""), b"a\xff".to_vec()..b"b".to_vec());
        assert_eq!(range(b"\xff", b"").end, b"");
    }

    #[test]
    fn a_table_never_contains_another_whose_name_it_starts() {
        assert!(!record("pods2", b"x").starts_with(&record("pods", b"")));
        assert_eq!(split_record(&record("pods", b"a/b")), Some((b"pods".as_slice(), b"a/b".as_slice())));
    }
}
