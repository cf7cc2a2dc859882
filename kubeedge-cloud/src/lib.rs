//! The stock `cloudcore`: reads KubeEdge's configuration file, composes the cloud's actors, runs until it is told to
//! stop. No behaviour of its own: what it does is in `kubeedge-actors`.
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | flags and commands |
//! | [`config`] | `cloudcore.yaml` |
//! | [`compose`] | which actors run, with which settings |
//! | [`control`] | the socket by which `cloudcore token ...` reaches the running cloudcore |

pub mod cli;
pub mod compose;
pub mod config;
pub mod control;
