//! The stock `edgecore`: reads KubeEdge's configuration file, composes the edge's actors, runs until it is told to
//! stop. No behaviour of its own: what it does is in `kubeedge-actors`.
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | flags and commands |
//! | [`config`] | `edgecore.yaml` |
//! | [`join`] | how a box becomes a node: certificate, key and configuration file |
//! | [`compose`] | which actors run, with which settings |

pub mod cli;
pub mod compose;
pub mod config;
pub mod join;
