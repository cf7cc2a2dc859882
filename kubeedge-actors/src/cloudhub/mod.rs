//! The cloudhub module.
