//! The wire format: keys, lengths, and the envelope of every body.

use bytes::Buf as _;
use prost::encoding::{WireType, decode_key, decode_varint};

/// The wire holds something else than it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("{0}")]
    Wire(#[from] prost::DecodeError),
    #[error("a field ends after the body")]
    Short,
    #[error("messages stand too deep inside each other")]
    Deep,
    #[error("field {0} has another wire type than it should")]
    Type(&'static str),
    #[error("field {0} is not UTF-8")]
    Text(&'static str),
}

/// `apiVersion`, `kind` and the raw object of the envelope `runtime.Unknown`.
pub(super) fn envelope(mut body: &[u8]) -> Result<(String, String, &[u8]), Malformed> {
    let (mut version, mut kind, mut raw): (String, String, &[u8]) = Default::default();
    while body.has_remaining() {
        match decode_key(&mut body)? {
            (1, WireType::LengthDelimited) => {
                let mut head = delimited(&mut body)?;
                while head.has_remaining() {
                    match decode_key(&mut head)? {
                        (1, WireType::LengthDelimited) => version = text(delimited(&mut head)?, "apiVersion")?,
                        (2, WireType::LengthDelimited) => kind = text(delimited(&mut head)?, "kind")?,
                        (_, wire) => skip(wire, &mut head)?,
                    }
                }
            }
            (2, WireType::LengthDelimited) => raw = delimited(&mut body)?,
            (_, wire) => skip(wire, &mut body)?,
        }
    }
    Ok((version, kind, raw))
}

/// Bytes with their length before them.
pub(super) fn delimited<'a>(body: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = usize::try_from(decode_varint(body)?).map_err(|_| Malformed::Short)?;
    let (bytes, rest) = body.split_at_checked(length).ok_or(Malformed::Short)?;
    *body = rest;
    Ok(bytes)
}

/// Leaves a field out.
pub(super) fn skip(wire: WireType, body: &mut &[u8]) -> Result<(), Malformed> {
    let length = match wire {
        WireType::Varint => {
            decode_varint(body)?;
            0
        }
        WireType::LengthDelimited => {
            delimited(body)?;
            0
        }
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        // Groups are not used by Kubernetes.
        WireType::StartGroup | WireType::EndGroup => return Err(Malformed::Short),
    };
    *body = body.get(length..).ok_or(Malformed::Short)?;
    Ok(())
}

pub(super) fn text(bytes: &[u8], name: &'static str) -> Result<String, Malformed> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed::Text(name))
}
