//! The edgehub module.
