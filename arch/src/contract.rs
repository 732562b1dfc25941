//! The contract suite: what every backend must satisfy, on every host.
