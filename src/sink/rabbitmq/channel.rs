//! The channels of a connection.

use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection};

/// Channels of a connection: while one waits for its last confirms, others publish. With too few of them
/// much of the window is confirmed and waits for the end of its batch.
pub(super) const CHANNELS: usize = 16;

/// A channel on which the broker confirms what it takes.
pub(super) async fn open_channel(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    Ok(channel)
}
