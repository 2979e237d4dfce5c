//! What tests on real engines share: the shared servers, private servers to break, and waiting for something.

pub(crate) mod cluster;
pub(crate) mod engines;
#[cfg(target_os = "linux")]
pub(crate) mod hostile;
pub(crate) mod liar;
pub(crate) mod pgbouncer;
pub(crate) mod postgres;
pub(crate) mod redis;
pub(crate) mod sentinels;
pub(crate) mod servers;
pub(crate) mod silencer;
pub(crate) mod wait;
