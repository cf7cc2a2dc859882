//! The edged module.
