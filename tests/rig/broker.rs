//! The interface of Kafka and RabbitMQ for tests that run on both.

use serde_json::Value;

use super::{Recall, Setup, published};

/// A broker for tests. A `name` is the name of a topic, or of an exchange and its queue.
pub trait Broker {
    /// A running broker that refuses messages larger than `bytes`, both events and dead letters.
    fn start_with_limit(bytes: u32) -> Self
    where
        Self: Sized;

    /// The relay's name for its sink.
    fn sink(&self) -> &'static str;

    /// Whether it drops a message that a producer sends again because a confirm was lost.
    fn is_idempotent(&self) -> bool;

    /// The settings of a relay that publishes to it. Dead letters go to `name.dead`.
    fn settings(&self, setup: Setup, name: &str) -> Setup;

    /// The same for a user who may publish events but no dead letters. Also returns the reason that the spool then
    /// stores with a dead letter, and a part of the detail.
    fn settings_without_dead_letters(
        &self,
        setup: Setup,
        name: &str,
    ) -> (Setup, &'static str, &'static str);

    /// Gives the user of [`Self::settings_without_dead_letters`] the right to publish them.
    fn allow_dead_letters(&self, name: &str);

    /// A node of a cluster, counted from 0. The first is the broker itself.
    fn node(&mut self, number: usize) -> &mut dyn Broker;

    /// Stops the broker cleanly.
    fn stop(&mut self);

    /// Kills the broker with SIGKILL.
    fn kill(&mut self);

    /// Starts the broker on the same data and ports, and waits until it answers.
    fn resume(&mut self);

    /// Freezes the broker: connections stay open, but it does not answer.
    fn freeze(&self);

    fn thaw(&self);

    /// Deletes the topic or the queue, with its messages.
    fn delete(&self, name: &str);

    /// The events that a subscriber receives, at least `at_least`, in order within each conversation.
    ///
    /// # Panics
    ///
    /// If there are fewer after a minute.
    fn events(&self, name: &str, at_least: usize) -> Vec<Value>;

    /// The recalls that [`Self::events`] report.
    fn recalls(&self, name: &str, at_least: usize) -> Vec<Recall> {
        published(&self.events(name, at_least))
    }

    /// The dead letters, at least `at_least`.
    ///
    /// # Panics
    ///
    /// If there are fewer after a minute.
    fn dead_letters(&self, name: &str, at_least: usize) -> Vec<DeadLetter>;
}

/// A dead letter as a subscriber receives it.
#[derive(Debug)]
pub struct DeadLetter {
    /// The event's id.
    pub id: Option<String>,
    /// The event's type.
    pub kind: Option<String>,
    pub reason: Option<String>,
}

/// The value of a header, if exactly one has that name.
pub(super) fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut values = headers.iter().filter(|(key, _)| key == name);
    let (_, value) = values.next()?;
    values.next().is_none().then_some(value)
}

/// Turns each promise, a function of a broker, into two tests: `PROMISE::kafka` and `PROMISE::rabbitmq`. In the order of
/// these names, two tests that run at a time are on different brokers.
macro_rules! on_both_brokers {
    ($($promise:ident,)+) => {
        $(mod $promise {
            #[test]
            fn kafka() {
                super::$promise(&mut *$crate::rig::Kafka::shared());
            }

            #[test]
            fn rabbitmq() {
                super::$promise(&mut *$crate::rig::RabbitMq::shared());
            }
        })+
    };
}

pub(crate) use on_both_brokers;
