//! See [`kubeedge_fuzz::inventory`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kubeedge_fuzz::inventory(bytes));
