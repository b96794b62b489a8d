//! Several servers of one broker, of which the relay needs one.

use futures_util::future::join_all;

use super::reach::{ServerTlsCheck, reach};
use super::report::Area;

/// A server of several.
#[derive(Debug)]
pub(super) struct Server {
    /// Its name for people.
    pub(super) name: String,
    pub(super) host: String,
    pub(super) port: u16,
    /// None without TLS, or if something else checks it.
    pub(super) tls: Option<ServerTlsCheck>,
}

/// Reaches all servers at the same time, and reports each. One that cannot be reached is a warning as long as another
/// one can. Returns for each whether it was reached.
pub(super) async fn reach_all(area: &Area, servers: &[Server]) -> Vec<bool> {
    let reaching = servers
        .iter()
        .map(async |server| reach(&server.host, server.port, server.tls.as_ref()).await);
    let outcomes = join_all(reaching).await;
    let reached: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    for (Server { name, .. }, outcome) in servers.iter().zip(outcomes) {
        match outcome {
            Ok(server) => server.report(area, name).await,
            Err(error) if reached.contains(&true) => {
                let text = format!("{}; the relay uses the others", error.reason);
                area.warning(name, text, error.action).await;
            }
            Err(error) => area.failed(name, error.reason, error.action).await,
        }
    }
    reached
}
