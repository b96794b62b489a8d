//! The channels of a connection.

use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection};

/// Channels per connection: while one waits for its last confirms, others publish. If there are too few, much of the
/// window is confirmed and only waits for the end of its batch.
pub(super) const CHANNELS: usize = 16;

/// Opens a channel with publisher confirms.
pub(super) async fn open_channel(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    Ok(channel)
}
