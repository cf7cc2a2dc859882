//! The guarantees of the kit, one test each, named by the guarantee; `docs/runtime-semantics.md` lists them.

mod ports;
mod probe;
mod stop;
mod supervision;
mod wiring;
