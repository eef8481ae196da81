//! A guest file as the supervisor and the commands read it: what it means, and what it was made from.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::config::GuestConfig;

/// A checked guest file.
#[derive(Debug, Clone)]
pub struct Definition {
    /// What it means.
    pub config: GuestConfig,
    /// Every file that it was made from.
    pub sources: Vec<PathBuf>,
    /// Differs when the meaning differs.
    pub hash: String,
}

impl Definition {
    /// Of a checked configuration.
    pub fn new(config: GuestConfig, sources: Vec<PathBuf>) -> Definition {
        let text = serde_json::to_vec(&config).expect("our own types have string keys and finite numbers");
        let digest = Sha256::digest(&text);
        let hash = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        Definition { config, sources, hash }
    }
}
