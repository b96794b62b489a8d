//! A session: publishes events as they arrive, or in transactions.

use super::producer::Producer;
use super::transactions::Transactions;
use crate::event::Seq;
use crate::sink::{CommittedPosition, Partitioning, Progress, Session, SessionError, Window};

/// A producer with records in flight.
pub struct KafkaSession {
    producer: Producer,
    /// Set if events are published exactly once.
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
    pub(super) const fn new(producer: Producer, transactions: Option<Transactions>) -> Self {
        Self {
            producer,
            transactions,
        }
    }
}

impl Session for KafkaSession {
    /// Transactions contain events of all partitions.
    fn partitioning(&self) -> Partitioning {
        match self.transactions {
            Some(_) => Partitioning::default(),
            None => self.producer.partitioning(),
        }
    }

    fn committed_position(&self) -> Option<CommittedPosition> {
        self.transactions.as_ref().map(Transactions::position)
    }

    fn publish(&mut self, window: &Window, seqs: &[Seq]) {
        match &mut self.transactions {
            Some(transactions) => transactions.publish(window, seqs, &mut self.producer),
            None => self.producer.publish(window, seqs),
        }
    }

    async fn progress(&mut self, window: &Window) -> Result<Progress, SessionError> {
        match &mut self.transactions {
            Some(transactions) => transactions.progress(window, &mut self.producer).await,
            None => self.producer.progress(window).await,
        }
    }

    fn last_error(&self) -> Option<String> {
        self.producer.reports().last_error()
    }

    async fn close(self) {
        if let Some(transactions) = self.transactions {
            transactions.close(&self.producer).await;
        }
        self.producer.close().await;
    }
}
