//! What Kafka and RabbitMQ have in common, for the promises that hold for both.

use super::{Recall, Setup};

/// A broker of the tests. A `name` is that of a topic, or of an exchange and its queue.
pub trait Broker {
    /// A running broker that takes no message of more than `bytes`, be it an event or a dead letter.
    fn start_with_limit(bytes: u32) -> Self
    where
        Self: Sized;

    /// What the relay calls its sink.
    fn sink(&self) -> &'static str;

    /// Whether it drops what a producer sends a second time because a confirm was lost.
    fn is_idempotent(&self) -> bool;

    /// The settings of a relay that publishes to it. Dead letters go to `name.dead`.
    fn settings(&self, setup: Setup, name: &str) -> Setup;

    /// The same for a user who may publish events but no dead letters; and what the spool then says of
    /// a dead letter: the reason, and a part of the detail.
    fn settings_without_dead_letters(
        &self,
        setup: Setup,
        name: &str,
    ) -> (Setup, &'static str, &'static str);

    /// Stops it as an operator does.
    fn stop(&mut self);

    /// SIGKILL.
    fn kill(&mut self);

    /// Starts it on the same data and ports, and waits until it answers.
    fn resume(&mut self);

    /// SIGSTOP: connections stay open, and the broker does not answer.
    fn freeze(&self);

    fn thaw(&self);

    /// Deletes the topic or the queue, with what is in it.
    fn delete(&self, name: &str);

    /// What a subscriber finds, at least so many, in each conversation's order.
    ///
    /// # Panics
    ///
    /// If there are fewer for a minute.
    fn recalls(&self, name: &str, at_least: usize) -> Vec<Recall>;

    /// The dead letters, at least so many.
    ///
    /// # Panics
    ///
    /// If there are fewer for a minute.
    fn dead_letters(&self, name: &str, at_least: usize) -> Vec<DeadLetter>;
}

/// A dead letter as a subscriber finds it.
#[derive(Debug)]
pub struct DeadLetter {
    /// The event's type.
    pub kind: Option<String>,
    pub reason: Option<String>,
}

/// The value of a header, if there is exactly one of that name.
pub(super) fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut values = headers.iter().filter(|(key, _)| key == name);
    let (_, value) = values.next()?;
    values.next().is_none().then_some(value)
}
