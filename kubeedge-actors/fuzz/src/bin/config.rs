//! See [`kubeedge_fuzz::config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kubeedge_fuzz::config(bytes));
