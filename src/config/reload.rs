//! What newly loaded settings change in a running relay.

use std::collections::BTreeSet;

use super::{Config, keys};

impl Config {
    /// These settings with those of `new` that can change while the relay runs: the applications, authentication, the
    /// listener's certificate, the upstream, the log's filter, and the connections to the brokers with their
    /// credentials and certificates.
    #[must_use]
    pub fn reloaded(&self, new: &Self) -> Self {
        let mut config = self.clone();
        config.sdk_app_ids.clone_from(&new.sdk_app_ids);
        config.auth.clone_from(&new.auth);
        config.http.tls.clone_from(&new.http.tls);
        config.upstream.clone_from(&new.upstream);
        config.log.filter.clone_from(&new.log.filter);
        #[cfg(feature = "kafka")]
        if let (Some(kafka), Some(new)) = (&mut config.kafka, &new.kafka) {
            kafka.take_connection(new);
        }
        #[cfg(feature = "rabbitmq")]
        if let (Some(rabbitmq), Some(new)) = (&mut config.rabbitmq, &new.rabbitmq) {
            rabbitmq.take_connection(new);
        }
        config
    }

    /// The keys whose values differ. Secrets are not compared.
    #[must_use]
    pub fn differences(&self, other: &Self) -> BTreeSet<String> {
        let [ours, theirs] = [self, other].map(|config| BTreeSet::from_iter(keys::flatten(config)));
        let different = ours.symmetric_difference(&theirs);
        different.map(|(key, _)| key.clone()).collect()
    }
}
