//! Names the right that the relay's user lacks.

use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;

/// The user that the cluster knows the relay as, and the names of what it needs rights on.
#[derive(Debug, Default)]
pub(super) struct Rights {
    user: String,
    /// The transactional id, which is also the name of the consumer group; empty without transactions.
    id: String,
}

/// What was being done with a topic.
#[derive(Debug, Clone, Copy)]
pub(super) enum TopicRight {
    Create,
    Describe,
    Read,
    Write,
}

impl Rights {
    /// The rights of a client with this configuration.
    pub(super) fn of(client: &ClientConfig) -> Self {
        let user = client.get("sasl.username");
        Self {
            user: user.map_or_else(
                || "the relay's user".to_owned(),
                |name| format!("user {name}"),
            ),
            id: client
                .get("transactional.id")
                .unwrap_or_default()
                .to_owned(),
        }
    }

    /// The text of an error, preceded by the right that is missing if `code` says that one is, for an operation on a
    /// topic.
    pub(super) fn explain(
        &self,
        code: RDKafkaErrorCode,
        right: TopicRight,
        topic: &str,
        text: String,
    ) -> String {
        use RDKafkaErrorCode as Code;
        let Self { user, id } = self;
        let missing = match (code, right) {
            (Code::TopicAuthorizationFailed, _) => format!("{right:?} on topic {topic}"),
            (Code::ClusterAuthorizationFailed, TopicRight::Create) => {
                format!("Create on topic {topic}, or on the cluster")
            }
            // From Kafka 2.8 on, a client gets a producer id if it may write to any topic.
            (Code::ClusterAuthorizationFailed, _) => format!(
                "Write on topic {topic} (brokers before 2.8: IdempotentWrite on the cluster)"
            ),
            (Code::TransactionalIdAuthorizationFailed, _) => {
                format!("Write on transactional id {id}")
            }
            (Code::GroupAuthorizationFailed, _) => format!("Read on group {id}"),
            _ => return text,
        };
        format!("{user} lacks the right {missing}: {text}")
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
        let explain = |code, right| rights.explain(code, right, "t", "denied".to_owned());
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
            assert_eq!(explain(code, right), format!("{expected}: denied"));
        }
        assert_eq!(explain(Code::UnknownTopic, TopicRight::Write), "denied");
        let code = Code::TopicAuthorizationFailed;
        let unknown = client(&[]).explain(code, TopicRight::Write, "t", "denied".to_owned());
        assert_eq!(
            unknown,
            "the relay's user lacks the right Write on topic t: denied"
        );
    }
}
