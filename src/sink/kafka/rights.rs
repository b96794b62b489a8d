//! Names the right that the relay's user lacks.

use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;

/// The user that the cluster knows the relay as, and the names of what it needs rights on.
#[derive(Debug, Default)]
pub(super) struct Rights {
    user: String,
    /// The transactional id, which is also the name of the consumer group.
    id: Option<String>,
}

/// What was being done with a topic.
#[derive(Debug, Clone, Copy)]
pub(super) enum TopicRight {
    Create,
    Describe,
    Read,
    Write,
}

impl fmt::Display for TopicRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Rights {
    /// The rights of a client with this configuration.
    pub(super) fn of(client: &ClientConfig) -> Self {
        let has = |names: &[&str]| names.iter().any(|name| client.get(name).is_some());
        let user = match client.get("sasl.username") {
            Some(name) => format!("user {name}"),
            None if has(&[
                "ssl.certificate.location",
                "ssl.certificate.pem",
                "ssl.keystore.location",
            ]) =>
            {
                "the user of the client certificate".to_owned()
            }
            None => "the relay's user".to_owned(),
        };
        Self {
            user,
            id: client.get("transactional.id").map(str::to_owned),
        }
    }

    /// The right that is missing if `code` says that one is, for an operation on a topic.
    pub(super) fn missing(
        &self,
        code: RDKafkaErrorCode,
        right: TopicRight,
        topic: &str,
    ) -> Option<String> {
        use RDKafkaErrorCode as Code;
        let id = self.id.as_deref().unwrap_or_default();
        let missing = match (code, right) {
            (Code::TopicAuthorizationFailed, _) => format!("{right} on topic {topic}"),
            (Code::ClusterAuthorizationFailed, TopicRight::Create) => {
                format!("Create on topic {topic}, or on the cluster")
            }
            // From Kafka 2.8 on, a producer id is given to whoever may write to any topic.
            (Code::ClusterAuthorizationFailed, _) => format!(
                "Write on topic {topic} (brokers before 2.8: IdempotentWrite on the cluster)"
            ),
            (Code::TransactionalIdAuthorizationFailed, _) => {
                format!("Write on transactional id {id}")
            }
            (Code::GroupAuthorizationFailed, _) => format!("Read on group {id}"),
            _ => return None,
        };
        Some(format!("{} lacks the right {missing}", self.user))
    }

    /// The text of an error, preceded by the right that is missing if `code` says that one is.
    pub(super) fn explain(
        &self,
        code: Option<RDKafkaErrorCode>,
        right: TopicRight,
        topic: &str,
        text: String,
    ) -> String {
        match code.and_then(|code| self.missing(code, right, topic)) {
            Some(missing) => format!("{missing}: {text}"),
            None => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_names_user_operation_and_resource() {
        use RDKafkaErrorCode as Code;
        let client = |pairs: &[(&str, &str)]| {
            let mut client = ClientConfig::new();
            for (name, value) in pairs {
                client.set(*name, *value);
            }
            Rights::of(&client)
        };
        let rights = client(&[("sasl.username", "ann"), ("transactional.id", "r-1")]);
        let missing = |code, right| rights.missing(code, right, "t").unwrap();
        for (code, right, expected) in [
            (
                Code::TopicAuthorizationFailed,
                TopicRight::Write,
                "user ann lacks the right Write on topic t",
            ),
            (
                Code::TopicAuthorizationFailed,
                TopicRight::Describe,
                "user ann lacks the right Describe on topic t",
            ),
            (
                Code::ClusterAuthorizationFailed,
                TopicRight::Create,
                "user ann lacks the right Create on topic t, or on the cluster",
            ),
            (
                Code::ClusterAuthorizationFailed,
                TopicRight::Write,
                "user ann lacks the right Write on topic t (brokers before 2.8: IdempotentWrite on \
                 the cluster)",
            ),
            (
                Code::TransactionalIdAuthorizationFailed,
                TopicRight::Write,
                "user ann lacks the right Write on transactional id r-1",
            ),
            (
                Code::GroupAuthorizationFailed,
                TopicRight::Read,
                "user ann lacks the right Read on group r-1",
            ),
        ] {
            assert_eq!(missing(code, right), expected);
        }
        assert_eq!(
            rights.missing(Code::UnknownTopic, TopicRight::Write, "t"),
            None
        );
        let by_certificate = client(&[("ssl.certificate.location", "c.pem")]);
        let unknown = client(&[]);
        for (rights, user) in [
            (by_certificate, "the user of the client certificate "),
            (unknown, "the relay's user "),
        ] {
            let missing = rights.missing(Code::TopicAuthorizationFailed, TopicRight::Write, "t");
            assert!(missing.unwrap().starts_with(user));
        }
    }
}
