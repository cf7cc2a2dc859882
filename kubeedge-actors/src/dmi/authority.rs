//! Lets mappers in whose `:authority` is none.
//!
//! grpc-go that dials a unix socket by its bare path names the path, with its slashes escaped, as the authority of every
//! request: `%2Fetc%2Fkubeedge%2Fdmi.sock`. That is no authority, and HTTP/2 in Rust resets the stream. So the bytes of a
//! connection are looked at before they come to it: header blocks are decoded, the authority becomes `localhost`, and
//! they are encoded anew, without a table of their own. Everything else passes as it is.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use loona_hpack::Decoder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a client says first.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const FRAME_HEAD: usize = 9;
/// The largest frame a client may send here: what HTTP/2 allows without an agreement, and none is made.
const MAX_FRAME: usize = 16_384;
/// The largest header block, in all its frames.
const MAX_BLOCK: usize = 64 * 1024;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const END_STREAM: u8 = 0x1;

/// Why a connection is given up.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A frame over the bound.
    #[error("a frame of {0} bytes, expected at most {MAX_FRAME}")]
    Frame(usize),
    /// A header block over the bound.
    #[error("a header block of more than {MAX_BLOCK} bytes")]
    Block,
    /// Padding that is longer than its frame, or a continuation of nothing.
    #[error("a header frame that is none")]
    Shape,
    /// Not HPACK.
    #[error("a header block that is none: {0}")]
    Hpack(String),
}

/// Header blocks with the authority mended. Pure: bytes in, bytes out.
pub struct Mender {
    decoder: Decoder<'static>,
    /// Not yet understood: at most a frame.
    input: Vec<u8>,
    /// Of the preface, still to pass.
    preface: usize,
    /// Of a frame that passes as it is, still to pass.
    passing: usize,
    /// The block that is being gathered: its stream, whether it ends it, its bytes.
    block: Option<(u32, bool, Vec<u8>)>,
}

impl Default for Mender {
    fn default() -> Self {
        let mut decoder = Decoder::new();
        // What a client may use without an agreement.
        decoder.set_max_allowed_table_size(4096);
        Self { decoder, input: Vec::new(), preface: PREFACE, passing: 0, block: None }
    }
}

impl Mender {
    /// Takes what came in; appends what goes on.
    pub fn take(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let pass = |left: &mut usize, bytes: &mut &[u8], out: &mut Vec<u8>| {
                let (now, later) = bytes.split_at((*left).min(bytes.len()));
                out.extend_from_slice(now);
                *left -= now.len();
                *bytes = later;
            };
            if self.preface > 0 {
                pass(&mut self.preface, &mut bytes, out);
                continue;
            }
            if self.passing > 0 {
                pass(&mut self.passing, &mut bytes, out);
                continue;
            }
            if self.input.len() < FRAME_HEAD {
                let (now, later) = bytes.split_at((FRAME_HEAD - self.input.len()).min(bytes.len()));
                self.input.extend_from_slice(now);
                bytes = later;
                if self.input.len() < FRAME_HEAD {
                    return Ok(());
                }
            }
            let length =
                usize::from(self.input[0]) << 16 | usize::from(self.input[1]) << 8 | usize::from(self.input[2]);
            if length > MAX_FRAME {
                return Err(Broken::Frame(length));
            }
            if !matches!(self.input[3], HEADERS | CONTINUATION) {
                out.append(&mut self.input);
                self.passing = length;
                continue;
            }
            let (now, later) = bytes.split_at((FRAME_HEAD + length - self.input.len()).min(bytes.len()));
            self.input.extend_from_slice(now);
            bytes = later;
            if self.input.len() == FRAME_HEAD + length {
                let frame = std::mem::take(&mut self.input);
                self.headers(&frame, out)?;
            }
        }
        Ok(())
    }

    fn headers(&mut self, frame: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let (kind, flags) = (frame[3], frame[4]);
        let stream = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]) & 0x7fff_ffff;
        let mut fragment = &frame[FRAME_HEAD..];
        let (stream, ends, mut block) = match (kind, self.block.take()) {
            (HEADERS, None) => {
                if flags & PADDED != 0 {
                    let (padding, rest) = fragment.split_first().ok_or(Broken::Shape)?;
                    let length = rest.len().checked_sub(usize::from(*padding)).ok_or(Broken::Shape)?;
                    fragment = &rest[..length];
                }
                if flags & PRIORITY != 0 {
                    fragment = fragment.get(5..).ok_or(Broken::Shape)?;
                }
                (stream, flags & END_STREAM != 0, Vec::new())
            }
            (CONTINUATION, Some(block)) if block.0 == stream => block,
            _ => return Err(Broken::Shape),
        };
        if block.len() + fragment.len() > MAX_BLOCK {
            return Err(Broken::Block);
        }
        block.extend_from_slice(fragment);
        if flags & END_HEADERS == 0 {
            self.block = Some((stream, ends, block));
            return Ok(());
        }
        let mut mended = Vec::with_capacity(block.len() + 64);
        let mut over = false;
        self.decoder
            .decode_with_cb(&block, |name, value| {
                // A few bytes can stand for many.
                over |= mended.len() + name.len() + value.len() > MAX_BLOCK;
                if over {
                    return;
                }
                let value = if *name == b":authority"[..] { b"localhost"[..].into() } else { value };
                literal(&name, &value, &mut mended);
            })
            .map_err(|error| Broken::Hpack(format!("{error:?}")))?;
        if over {
            return Err(Broken::Block);
        }
        write_block(stream, ends, &mended, out);
        Ok(())
    }
}

/// A header as a literal that goes into no table, without Huffman's code.
fn literal(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.push(0x00);
    for text in [name, value] {
        // An integer with a prefix of 7 bits.
        let mut left = text.len();
        if left < 127 {
            out.push(left as u8);
        } else {
            out.push(127);
            left -= 127;
            while left >= 128 {
                out.push((left % 128) as u8 | 0x80);
                left /= 128;
            }
            out.push(left as u8);
        }
        out.extend_from_slice(text);
    }
}

fn write_block(stream: u32, ends: bool, block: &[u8], out: &mut Vec<u8>) {
    let mut pieces = block.chunks(MAX_FRAME).peekable();
    let mut kind = HEADERS;
    // A block has at least a method.
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        let end = if ends && kind == HEADERS { END_STREAM } else { 0 };
        out.extend_from_slice(&(piece.len() as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&[kind, last | end]);
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(piece);
        kind = CONTINUATION;
    }
}

pin_project_lite::pin_project! {
    /// A connection whose incoming header blocks are mended.
    pub struct Mended<S> {
        #[pin]
        inner: S,
        mender: Mender,
        // Mended, not yet read.
        ready: Vec<u8>,
        at: usize,
    }
}

impl<S> Mended<S> {
    /// Around a connection that has just been accepted.
    pub fn new(inner: S) -> Self {
        Self { inner, mender: Mender::default(), ready: Vec::new(), at: 0 }
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncRead> AsyncRead for Mended<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        loop {
            if *this.at < this.ready.len() {
                let left = &this.ready[*this.at..];
                let now = left.len().min(buffer.remaining());
                buffer.put_slice(&left[..now]);
                *this.at += now;
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            *this.at = 0;
            let mut bytes = [0; 8192];
            let mut read = ReadBuf::new(&mut bytes);
            match this.inner.as_mut().poll_read(cx, &mut read) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) if read.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {
                    if let Err(broken) = this.mender.take(read.filled(), this.ready) {
                        tracing::warn!("a mapper's connection is given up: {broken}");
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, broken)));
                    }
                }
            }
        }
    }
}

impl<S: AsyncWrite> AsyncWrite for Mended<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.project().inner.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use loona_hpack::Encoder;
    use proptest::prelude::*;

    use super::*;

    const DATA: u8 = 0;
    const GO: &[u8] = b"%2Fetc%2Fkubeedge%2Fdmi.sock";

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    fn decode(block: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        Decoder::new().decode(block).unwrap()
    }

    fn preface() -> Vec<u8> {
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()
    }

    /// The frames of what came out, by kind, flags and payload.
    fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let length = usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
            frames.push((bytes[3], bytes[4], bytes[9..9 + length].to_vec()));
            bytes = &bytes[9 + length..];
        }
        frames
    }

    fn mend(bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut mender, mut out) = (Mender::default(), Vec::new());
        bytes.chunks(piece).for_each(|chunk| mender.take(chunk, &mut out).unwrap());
        out
    }

    #[test]
    fn the_authority_of_a_socket_path_becomes_localhost_in_every_request_of_a_connection() {
        let mut encoder = Encoder::new();
        let mut bytes = preface();
        bytes.extend(frame(4, 0, 0, &[]));
        for stream in [1, 3] {
            let headers = [(&b":method"[..], &b"POST"[..]), (b":authority", GO), (b"x-y", b"z")];
            // The second refers to the table that the first has filled.
            bytes.extend(frame(HEADERS, END_HEADERS, stream, &encoder.encode(headers)));
            bytes.extend(frame(DATA, END_STREAM, stream, b"body"));
        }
        for piece in [1, 7, 10_000] {
            let out = mend(&bytes, piece);
            assert_eq!(out[..PREFACE], preface());
            let out = frames(&out[PREFACE..]);
            assert_eq!(out.len(), 5);
            for (kind, flags, payload) in [&out[1], &out[3]] {
                assert_eq!((*kind, *flags), (HEADERS, END_HEADERS));
                let expected = [(":method", "POST"), (":authority", "localhost"), ("x-y", "z")]
                    .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
                assert_eq!(decode(payload), expected);
            }
            assert_eq!(out[4], (DATA, END_STREAM, b"body".to_vec()));
        }
    }

    #[test]
    fn a_block_in_pieces_with_padding_and_priority_comes_out_whole() {
        let block = Encoder::new().encode([(&b":authority"[..], GO), (b"a", b"b")]);
        let mut first = vec![3, 0, 0, 0, 0, 16];
        first.extend_from_slice(&block[..4]);
        first.extend_from_slice(&[0; 3]);
        let mut bytes = preface();
        bytes.extend(frame(HEADERS, PADDED | PRIORITY | END_STREAM, 1, &first));
        bytes.extend(frame(CONTINUATION, END_HEADERS, 1, &block[4..]));
        let out = frames(&mend(&bytes, 5)[PREFACE..]);
        assert_eq!((out.len(), out[0].1), (1, END_HEADERS | END_STREAM));
        assert_eq!(decode(&out[0].2)[0], (b":authority".to_vec(), b"localhost".to_vec()));
    }

    #[test]
    fn long_headers_leave_in_frames_that_are_allowed() {
        let long = vec![b'v'; 40_000];
        let block = Encoder::new().encode([(&b"a"[..], long.as_slice())]);
        let mut bytes = preface();
        let pieces: Vec<&[u8]> = block.chunks(MAX_FRAME).collect();
        for (index, piece) in pieces.iter().enumerate() {
            let kind = if index == 0 { HEADERS } else { CONTINUATION };
            let flags = if index + 1 == pieces.len() { END_HEADERS } else { 0 };
            bytes.extend(frame(kind, flags, 1, piece));
        }
        let out = frames(&mend(&bytes, 4096)[PREFACE..]);
        let whole: Vec<u8> = out.iter().flat_map(|(_, _, payload)| payload.clone()).collect();
        assert_eq!(decode(&whole), [(b"a".to_vec(), long)]);
        assert!(out.len() > 1 && out[1].0 == CONTINUATION);
    }

    #[test]
    fn what_is_over_a_bound_ends_the_connection() {
        let take = |bytes: &[u8]| Mender::default().take(&[preface(), bytes.to_vec()].concat(), &mut Vec::new());
        assert!(matches!(take(&[1, 0, 0, 0, 0, 0, 0, 0, 1]), Err(Broken::Frame(65536))));
        assert!(matches!(take(&frame(CONTINUATION, 0, 1, b"x")), Err(Broken::Shape)));
        assert!(matches!(take(&frame(HEADERS, PADDED, 1, &[9, 1])), Err(Broken::Shape)));
        let mut long = frame(HEADERS, 0, 1, &[0; MAX_FRAME]);
        (0..4).for_each(|_| long.extend(frame(CONTINUATION, 0, 1, &[0; MAX_FRAME])));
        assert!(matches!(take(&long), Err(Broken::Block)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), piece in 1..50usize) {
            let (mut mender, mut out) = (Mender::default(), Vec::new());
            let bytes = [preface(), bytes].concat();
            let _ = bytes.chunks(piece).try_for_each(|chunk| mender.take(chunk, &mut out));
        }
    }
}
