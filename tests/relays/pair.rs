//! Two relays with spools of their own behind `HAProxy`.

use crate::APPS;
use crate::haproxy::{HaProxy, Mode, Ports, VENDOR};
use crate::rig::{Broker, Faults, Relay, Setup, free_port};

pub struct Pair {
    pub haproxy: HaProxy,
    pub first: Member,
    pub second: Member,
}

pub struct Member {
    pub setup: Setup,
    pub faults: Faults,
    relay: Option<Relay>,
}

impl Pair {
    /// Starts all three, and returns when `HAProxy` has seen both relays. They publish to the same topic or queue.
    pub fn start(mode: Mode, broker: &dyn Broker, name: &str) -> Self {
        Self::start_with(mode, broker, name, |setup| setup)
    }

    /// Like [`Self::start`], with other settings for the first relay.
    pub fn start_with(
        mode: Mode,
        broker: &dyn Broker,
        name: &str,
        first: impl Fn(Setup) -> Setup,
    ) -> Self {
        let ports = [(); 2].map(|()| Ports {
            callbacks: free_port(),
            admin: free_port(),
        });
        let [one, two] = ports.map(|ports| broker.settings(setup(ports), name));
        let (mut first, mut second) = (Member::new(&first(one)), Member::new(&two));
        first.start();
        second.start();
        let haproxy = HaProxy::start(first.setup.folder(), mode, ports);
        let pair = Self {
            haproxy,
            first,
            second,
        };
        pair.until_up();
        pair
    }

    pub fn until_up(&self) {
        self.haproxy.until_up(1, true);
        self.haproxy.until_up(2, true);
    }

    /// Waits until the broker has confirmed the events of both.
    pub fn until_drained(&self, sink: &str) {
        self.first.relay().until_drained(sink);
        self.second.relay().until_drained(sink);
    }
}

impl Member {
    fn new(setup: &Setup) -> Self {
        let faults = Faults::new();
        Self {
            setup: setup.with_faults(&faults),
            faults,
            relay: None,
        }
    }

    pub fn start(&mut self) {
        self.relay = Some(self.setup.start());
    }

    /// Starts it with another setting, for this time only.
    pub fn start_with(&mut self, name: &str, value: &str) {
        self.relay = Some(self.setup.with(name, value).start());
    }

    pub fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("it is running")
    }

    /// Stops it in order.
    pub fn stop(&mut self) {
        self.relay.take().expect("it is running").stop();
    }

    pub fn kill(&mut self) {
        self.relay.take().expect("it is running").kill();
    }
}

/// What the top of `deploy/haproxy.cfg` says that a relay needs.
fn setup(ports: Ports) -> Setup {
    let apps = APPS.map(|app| app.to_string()).join(",");
    Setup::new()
        .set("RECALL_SDK_APP_IDS", &apps)
        .set(
            "RECALL_HTTP__LISTEN",
            &format!("127.0.0.1:{}", ports.callbacks),
        )
        .set(
            "RECALL_ADMIN__LISTEN",
            &format!("127.0.0.1:{}", ports.admin),
        )
        .set("RECALL_HTTP__STOP_DELAY", "2s")
        .set("RECALL_AUTH__TRUSTED_PROXIES", "127.0.0.1")
        .set("RECALL_AUTH__ALLOWED_SOURCES", &VENDOR.to_string())
}
