//! The settings in force, as `recall-relay config` prints them.

use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;

/// A setting in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettingInForce {
    /// Its key.
    #[serde(rename = "setting")]
    pub key: String,
    /// Where it comes from.
    pub source: String,
    /// Its value; secrets are hidden.
    pub value: String,
    /// Whether a reload has found another value, which takes effect after a restart.
    pub restart_needed: bool,
}

/// All settings in force; clones share them. A reload replaces them.
#[derive(Debug, Clone, Default)]
pub struct SettingsInForce(Arc<RwLock<Vec<SettingInForce>>>);

impl SettingsInForce {
    /// Replaces the settings.
    pub fn set(&self, settings: Vec<SettingInForce>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    pub(super) fn all(&self) -> Vec<SettingInForce> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
