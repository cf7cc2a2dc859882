//! What a value is, and how its bytes are wrapped: version and checksum around every record.

use super::{StoreError, engine::Entries, keys};

/// A value that a table can hold.
///
/// `decode` gets the version that the record was written with and has to read every version up to `VERSION`; records
/// of a newer version are refused before `decode` is called.
pub trait Record: Sized {
    /// The version that `encode` writes. Raise it when the encoding changes in a way that `decode` must know.
    const VERSION: u8;

    /// The value as bytes.
    fn encode(&self) -> Vec<u8>;

    /// The value from the bytes of `version`, which is at most `VERSION`.
    fn decode(version: u8, bytes: &[u8]) -> Result<Self, DecodeError>;
}

/// Why bytes with a right checksum are not a value.
pub type DecodeError = Box<dyn std::error::Error + Send + Sync>;

impl Record for Vec<u8> {
    const VERSION: u8 = 1;

    fn encode(&self) -> Vec<u8> {
        self.clone()
    }

    fn decode(_version: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(bytes.to_vec())
    }
}

impl Record for bytes::Bytes {
    const VERSION: u8 = 1;

    fn encode(&self) -> Vec<u8> {
        self.to_vec()
    }

    fn decode(_version: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self::copy_from_slice(bytes))
    }
}

impl Record for String {
    const VERSION: u8 = 1;

    fn encode(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn decode(_version: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(std::str::from_utf8(bytes)?.to_owned())
    }
}

/// Any protobuf message as a record; protobuf's own rules carry its evolution.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proto<M>(pub M);

impl<M: prost::Message + Default> Record for Proto<M> {
    const VERSION: u8 = 1;

    fn encode(&self) -> Vec<u8> {
        self.0.encode_to_vec()
    }

    fn decode(_version: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self(M::decode(bytes)?))
    }
}

/// Makes protobuf messages of `kubeedge_proto` records of their own, without the [`Proto`] wrapper.
#[macro_export]
macro_rules! message_records {
    ($($message:ty),+ $(,)?) => {$(
        impl $crate::store::Record for $message {
            const VERSION: u8 = 1;

            fn encode(&self) -> Vec<u8> {
                ::prost::Message::encode_to_vec(self)
            }

            fn decode(_version: u8, bytes: &[u8]) -> Result<Self, $crate::store::DecodeError> {
                Ok(<$message as ::prost::Message>::decode(bytes)?)
            }
        }
    )+};
}

/// A value encoded and not yet wrapped.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) version: u8,
    pub(crate) payload: Vec<u8>,
}

/// The largest part of a value that stands in one entry of the engine.
///
/// sled keeps up to 16 entries (19 for a moment, when pages merge) on a page and writes a page as one message; what is
/// over 128 KiB goes to a file of its own. 19 entries of 4 KiB with their keys stay below that.
pub(crate) const CHUNK_BYTES: usize = 4 * 1024;

const INLINE: u8 = 1;
const CHUNKED: u8 = 2;
/// layout, record version, checksum
const INLINE_HEAD: usize = 6;

/// The first entry of a record: all of it, or where its chunks are.
#[derive(Debug, PartialEq)]
pub(crate) enum Head<'a> {
    Inline { version: u8, payload: &'a [u8] },
    Chunked { version: u8, checksum: u32, len: usize, generation: u64 },
}

/// A damaged or unknown entry: what is wrong with it.
pub(crate) type Damage = String;

fn checksum(key: &[u8], parts: &[&[u8]]) -> u32 {
    // The key is part of it: a value at the wrong place is damage too.
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&(key.len() as u32).to_le_bytes());
    hasher.update(key);
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// The entries of a record: its head, then its chunks with their keys.
pub(crate) fn wrap(key: &[u8], value: &Encoded, generation: u64) -> (Vec<u8>, Entries) {
    let payload = &value.payload;
    if payload.len() <= CHUNK_BYTES {
        let mut head = Vec::with_capacity(INLINE_HEAD + payload.len());
        head.extend_from_slice(&[INLINE, value.version]);
        head.extend_from_slice(&checksum(key, &[&[INLINE, value.version], payload]).to_le_bytes());
        head.extend_from_slice(payload);
        return (head, Vec::new());
    }
    let mut head = Vec::with_capacity(22);
    head.extend_from_slice(&[CHUNKED, value.version]);
    head.extend_from_slice(&checksum(key, &[payload]).to_le_bytes());
    head.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    head.extend_from_slice(&generation.to_le_bytes());
    let own = checksum(key, &[&head]);
    head.extend_from_slice(&own.to_le_bytes());
    let chunks = payload
        .chunks(CHUNK_BYTES)
        .zip(0u32..)
        .map(|(part, index)| (keys::chunk(key, generation, index), part.to_vec()))
        .collect();
    (head, chunks)
}

/// Reads a record's first entry and checks what of it can be checked.
pub(crate) fn head<'a>(key: &[u8], entry: &'a [u8]) -> Result<Head<'a>, Damage> {
    let short = || format!("{} bytes are no record", entry.len());
    match entry.first() {
        Some(&INLINE) => {
            let (fixed, payload) = entry.split_at_checked(INLINE_HEAD).ok_or_else(short)?;
            let found = u32::from_le_bytes([fixed[2], fixed[3], fixed[4], fixed[5]]);
            let version = fixed[1];
            match checksum(key, &[&[INLINE, version], payload]) {
                right if right == found => Ok(Head::Inline { version, payload }),
                right => Err(format!("its checksum is {found:08x}, its bytes give {right:08x}")),
            }
        }
        Some(&CHUNKED) => {
            let fixed: &[u8; 22] = entry.try_into().map_err(|_| short())?;
            let word = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
            if checksum(key, &[&fixed[..18]]) != word(18) {
                return Err("the checksum of its head is wrong".to_owned());
            }
            let generation = u64::from(word(10)) | u64::from(word(14)) << 32;
            Ok(Head::Chunked { version: fixed[1], checksum: word(2), len: word(6) as usize, generation })
        }
        Some(layout) => Err(format!("layout {layout} is not known")),
        None => Err(short()),
    }
}

/// Whether chunks, put together, are the value that the head announced.
pub(crate) fn check_chunks(key: &[u8], payload: &[u8], len: usize, expected: u32) -> Result<(), Damage> {
    if payload.len() != len {
        return Err(format!("its chunks hold {} bytes of {len}", payload.len()));
    }
    match checksum(key, &[payload]) {
        found if found == expected => Ok(()),
        found => Err(format!("its checksum is {expected:08x}, its chunks give {found:08x}")),
    }
}

/// Bytes with a right checksum to a value, with the errors a reader sees.
pub(crate) fn decode<V: Record>(table: &str, key: &[u8], version: u8, payload: &[u8]) -> Result<V, StoreError> {
    if version > V::VERSION {
        return Err(StoreError::NewerRecord {
            table: table.to_owned(),
            key: show(key),
            found: version,
            known: V::VERSION,
        });
    }
    V::decode(version, payload).map_err(|error| corrupt(table, key, error.to_string()))
}

pub(crate) fn corrupt(table: &str, key: &[u8], why: String) -> StoreError {
    StoreError::Corrupt { table: table.to_owned(), key: show(key), why }
}

/// A key for a message: text as far as it is text, shortened.
pub(crate) fn show(key: &[u8]) -> String {
    String::from_utf8_lossy(key).chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_flipped_bit_of_an_entry_is_found(payload in prop::collection::vec(any::<u8>(), 0..200), bit: u16) {
            let key = keys::record("t", b"k");
            let (mut entry, _) = wrap(&key, &Encoded { version: 3, payload }, 7);
            let at = usize::from(bit) % (entry.len() * 8);
            entry[at / 8] ^= 1 << (at % 8);
            prop_assert!(head(&key, &entry).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(entry in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = head(b"\x01key", &entry);
        }
    }

    #[test]
    fn a_value_at_another_key_is_damage() {
        let value = Encoded { version: 1, payload: vec![1; 10] };
        let (entry, _) = wrap(&keys::record("t", b"a"), &value, 1);
        assert!(head(&keys::record("t", b"a"), &entry).is_ok());
        assert!(head(&keys::record("t", b"b"), &entry).is_err());
    }
}
