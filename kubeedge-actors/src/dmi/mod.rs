//! What both ends of the Device Mapper Interface need: a socket that callers in any language reach, and values.

pub mod authority;
pub mod socket;
pub mod values;
