//! What is wrong with settings that can be read: required ones that are missing, and those that contradict each other.

use super::Config;
use crate::setting::{SettingError, Size};
use crate::{receiver, sink};

impl Config {
    /// One error for each setting that must be changed.
    pub(super) fn contradictions(&self) -> Vec<SettingError> {
        let mut found = Vec::new();
        let mut wrong = |key: &str, problem: &str| found.push(SettingError::new(key, problem));
        if self.sdk_app_ids.is_empty() {
            wrong(
                "sdk_app_ids",
                "is missing; set it to the SdkAppid of your application, or to several, for example \
                 RECALL_SDK_APP_IDS=1400000001",
            );
        }
        if self.answer_after == receiver::AnswerAfter::Broker
            && self.sink_names() == [sink::stdout::NAME]
        {
            wrong(
                "answer_after",
                "needs a broker: set kafka.bootstrap_servers or rabbitmq.uri, or answer_after to \"disk\"",
            );
        }
        if let Err(problem) = self.auth.check(&self.sdk_app_ids) {
            wrong("auth.tokens", &problem);
        }
        if self.admin.listen == self.http.listen && self.admin.listen.port() != 0 {
            wrong("admin.listen", "must differ from http.listen");
        }
        for (key, size) in [
            ("http.max_body_bytes", self.http.max_body_bytes),
            ("spool.max_bytes", self.spool.max_bytes),
        ] {
            if size == Size(0) {
                wrong(
                    key,
                    "must be more than zero; otherwise every callback is refused",
                );
            }
        }
        if self.http.max_buffered_bytes < self.http.max_body_bytes {
            wrong(
                "http.max_buffered_bytes",
                "must be at least http.max_body_bytes; otherwise the largest bodies are always refused",
            );
        }
        if self.http.proxy_protocol && self.auth.trusted_proxies.is_empty() {
            wrong(
                "http.proxy_protocol",
                "needs auth.trusted_proxies: the header is expected from these alone",
            );
        }
        if self.http.max_unauthenticated_bytes < Size(4 << 10) {
            wrong(
                "http.max_unauthenticated_bytes",
                "must be at least 4KiB; otherwise the console's probe may be refused",
            );
        }
        let sections = [
            self.http
                .tls
                .check()
                .err()
                .map(|error| error.within("http.tls")),
            self.upstream
                .as_ref()
                .and_then(|upstream| upstream.check().err()),
            #[cfg(feature = "kafka")]
            self.kafka.as_ref().and_then(|kafka| kafka.check().err()),
            #[cfg(feature = "rabbitmq")]
            self.rabbitmq
                .as_ref()
                .and_then(|rabbitmq| rabbitmq.check().err()),
        ];
        found.extend(sections.into_iter().flatten());
        found
    }
}
