//! The body of a link's answer, whose buffer is never reused.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tonic::Status;

/// Holds on to what it gave out last. tonic encodes into the buffer before last when nobody else has a part of it, and it
/// stays as large as it ever was; a link lasts for months, mostly with heartbeats. So it takes a new one each time.
#[derive(Debug)]
pub(super) struct Fresh {
    body: tonic::body::Body,
    last: Bytes,
}

impl Fresh {
    pub(super) fn of(body: tonic::body::Body) -> Self {
        Self { body, last: Bytes::new() }
    }
}

impl Body for Fresh {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.last = data.clone();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    #[tokio::test]
    async fn what_was_given_out_last_is_shared_until_the_next() {
        let parts: Vec<Bytes> = ["first", "second"].map(|text| Bytes::from(text.as_bytes().to_vec())).into();
        let frames = stream::iter(parts).map(|part| Ok::<_, Status>(Frame::data(part)));
        let mut body = Fresh::of(tonic::body::Body::new(StreamBody::new(frames)));
        let mut next = async || body.frame().await.map(|frame| frame.unwrap().into_data().unwrap());
        let first = next().await.unwrap();
        assert!(!first.is_unique(), "whoever encodes would reuse it");
        let second = next().await.unwrap();
        assert!(first.is_unique() && !second.is_unique());
        assert!(next().await.is_none());
    }
}
