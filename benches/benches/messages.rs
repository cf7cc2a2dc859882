//! What an envelope costs to encode and to decode, by the size of what it carries.
//!
//! `encode` includes the allocation of the buffer; `decode` reads from shared bytes, so that the body is not copied.

#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::expect_used, reason = "a bench that cannot run should say so and end")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kubeedge_proto::{
    resource,
    v1::{Envelope, KubeObject, ObjectKey, ObjectUpsert, envelope::Body},
};
use prost::{Message as _, bytes::Bytes};

/// Bytes of the object inside: a status, a pod, the largest ConfigMap.
const SIZES: [usize; 3] = [256, 4 * 1024, 1024 * 1024];

fn upsert(bytes: usize) -> Envelope {
    let object = KubeObject {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("default", "web-5d9c7b8f6-x2x7k")),
        uid: "0f4c9a52-3e0b-4d4c-8f0e-6b8f1f9d7a11".into(),
        json: vec![b'x'; bytes].into(),
        ..Default::default()
    };
    Envelope::new(
        "edgecontroller",
        1_700_000_000_000,
        Body::ObjectUpsert(ObjectUpsert { object: Some(object), ..ObjectUpsert::default() }),
    )
}

fn envelopes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("envelope");
    for size in SIZES {
        let envelope = upsert(size);
        let encoded = Bytes::from(envelope.encode_to_vec());
        group.throughput(Throughput::Bytes(encoded.len() as u64));
        group.bench_with_input(BenchmarkId::new("encode", size), &envelope, |bencher, envelope| {
            bencher.iter(|| black_box(envelope).encode_to_vec());
        });
        group.bench_with_input(BenchmarkId::new("copy", size), &encoded, |bencher, encoded| {
            bencher.iter(|| black_box(encoded).to_vec());
        });
        group.bench_with_input(BenchmarkId::new("decode", size), &encoded, |bencher, encoded| {
            bencher.iter(|| Envelope::decode(black_box(encoded).clone()).expect("an envelope"));
        });
    }
    group.finish();
}

criterion_group!(benches, envelopes);
criterion_main!(benches);
