//! The types that a setting's text is parsed into: durations, sizes, lists, secrets.
//!
//! Every setting can come from the environment, where every value is text, and from TOML, where numbers have
//! their own type. So each type here accepts both, and so does [`text`] for the types of other crates. The text is
//! [clean](clean()) already.

mod certificate_facts;
mod certificates;
mod clean;
mod client_tls;
mod duration;
mod list;
mod secret;
mod server_tls;
mod size;
mod text;
mod text_file;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

pub use self::certificate_facts::CertificateFacts;
pub use self::certificates::{CertifiedChain, SettingError};
pub use self::clean::clean;
pub(crate) use self::clean::has_control_character;
pub use self::client_tls::{Certificates, ClientTls, system_authorities};
pub use self::duration::{Period, Timeout};
pub(crate) use self::list::EMPTY;
pub use self::list::List;
pub use self::secret::Secret;
pub use self::server_tls::{ServerCertificate, ServerTls};
pub use self::size::Size;
pub use self::text::{address, number, optional_path, path, text};
pub use self::text_file::{read_bytes, read_text};

macro_rules! as_text {
    ($($type:ident),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text(deserializer)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

as_text!(Period, Timeout, Size, Secret);
