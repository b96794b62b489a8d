//! A session: events as they come, or in transactions.

use super::outbox::Outbox;
use super::transactions::Transactions;
use crate::sink::{Delivery, Progress, Session, SessionError, Standing};

/// A producer with records in flight.
pub struct KafkaSession {
    outbox: Outbox,
    /// Where events are published exactly once.
    transactions: Option<Transactions>,
}

impl std::fmt::Debug for KafkaSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSession")
            .field("transactions", &self.transactions.is_some())
            .finish_non_exhaustive()
    }
}

impl KafkaSession {
    pub(super) const fn new(outbox: Outbox, transactions: Option<Transactions>) -> Self {
        Self {
            outbox,
            transactions,
        }
    }
}

impl Session for KafkaSession {
    fn standing(&self) -> Option<Standing> {
        self.transactions.as_ref().map(Transactions::standing)
    }

    fn publish(&mut self, deliveries: Vec<Delivery>) {
        match &mut self.transactions {
            Some(transactions) => transactions.publish(deliveries, &mut self.outbox),
            None => self.outbox.publish(deliveries),
        }
    }

    async fn progress(&mut self) -> Result<Progress, SessionError> {
        match &mut self.transactions {
            Some(transactions) => transactions.progress(&mut self.outbox).await,
            None => self.outbox.progress().await,
        }
    }

    async fn close(self) {
        if let Some(transactions) = self.transactions {
            transactions.close(&self.outbox).await;
        }
        self.outbox.close().await;
    }
}
