//! See [`kubeedge_fuzz::token`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kubeedge_fuzz::token(bytes));
