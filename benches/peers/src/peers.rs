//! The peers, each set up as its own documents say.

pub mod bare;
pub mod cached;
pub mod hand_rolled;
pub mod hitbox;
pub mod moka;
pub mod multi_tier;
pub mod near;
pub mod quick;
pub mod tracking;
