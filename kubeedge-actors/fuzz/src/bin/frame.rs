//! See [`kubeedge_fuzz::frame`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kubeedge_fuzz::frame(bytes));
