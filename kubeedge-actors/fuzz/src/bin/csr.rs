//! See [`kubeedge_fuzz::csr`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kubeedge_fuzz::csr(bytes));
