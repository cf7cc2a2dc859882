//! The gRPC codec of all services here: protobuf, with buffers that begin small and stay no larger than what goes through.
//!
//! tonic gives every stream a buffer of 8 KiB for either direction, and one that has grown stays as large. A link is a
//! stream that lasts for months and mostly carries heartbeats; a cloud has thousands of them.

use std::{fmt, marker::PhantomData};

use bytes::{Buf, Bytes};
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Where a buffer begins, bytes.
const BUFFER_BYTES: usize = 512;
/// Messages that are ready are sent together up to this, bytes: tonic's own default.
const TOGETHER_BYTES: usize = 32 * 1024;

/// Protobuf over gRPC.
pub struct SmallCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> fmt::Debug for SmallCodec<T, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SmallCodec")
    }
}

impl<T, U> Codec for SmallCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = SmallEncoder<T>;
    type Decoder = SmallDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        SmallEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        SmallDecoder { last: Bytes::new(), message: PhantomData }
    }
}

fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, TOGETHER_BYTES)
}

/// Takes as much as a message needs, at once: a buffer that grows field by field doubles.
#[derive(Debug)]
pub struct SmallEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for SmallEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.encoded_len());
        item.encode(buffer).map_err(|error| Status::internal(format!("a message that cannot be encoded: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}

/// Receives into a buffer for each time that something comes, as large as that is. One that is reused stays as large as
/// the largest message was, and doubles on the way there.
#[derive(Debug)]
pub struct SmallDecoder<U> {
    /// Of the buffer: it is reused when nobody else has a part of it.
    last: Bytes,
    message: PhantomData<U>,
}

impl<U: Message + Default> Decoder for SmallDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // No copy: a part of the buffer.
        self.last = buffer.copy_to_bytes(buffer.remaining());
        let decoded = U::decode(self.last.clone());
        decoded.map(Some).map_err(|error| Status::internal(format!("not a message of this protocol: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}
