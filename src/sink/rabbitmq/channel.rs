//! The channels of a connection.

use lapin::options::ConfirmSelectOptions;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Channel, Connection, Error, ErrorKind};

/// Channels per connection: while one waits for its last confirms, others publish. If there are too few, much of the
/// window is confirmed and only waits for the end of its batch.
pub(super) const CHANNELS: usize = 16;

/// Opens up to `wanted` channels, or as many as the node (`channel_max`) or the user's limit (`max-channels`) allows, but
/// at least one. If it is the user's limit that is exceeded, the node closes the connection.
pub(super) async fn open_channels(
    connection: &Connection,
    wanted: usize,
) -> lapin::Result<Vec<Channel>> {
    let mut channels = Vec::with_capacity(wanted);
    while channels.len() < wanted {
        match open_channel(connection).await {
            Ok(channel) => channels.push(channel),
            Err(error) if !channels.is_empty() && is_limit(&error) => {
                // Leave one for the moment in which a channel is replaced by another.
                if channels.len() > 1
                    && connection.status().connected()
                    && let Some(spare) = channels.pop()
                {
                    spare.close(200, "OK".into()).await?;
                }
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(channels)
}

fn is_limit(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::ChannelsLimitReached => true,
        ErrorKind::ProtocolError(error) => {
            *error.kind() == AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)
        }
        _ => false,
    }
}

/// Opens a channel with publisher confirms.
pub(super) async fn open_channel(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    Ok(channel)
}

/// Whether the broker has closed the channel with this error.
pub(super) fn is(error: &Error, code: &AMQPSoftError) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if *error.kind() == AMQPErrorKind::Soft(code.clone()))
}

/// An error, preceded by the right that the user lacks if the broker refused access: the broker itself names the user,
/// but not the right.
pub(super) fn explain(error: &Error, right: &str, resource: &str) -> String {
    if is(error, &AMQPSoftError::ACCESSREFUSED) {
        format!("the user lacks the right {right} on {resource}: {error}")
    } else {
        format!("{resource}: {error}")
    }
}
