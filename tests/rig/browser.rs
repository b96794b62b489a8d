//! A headless Chromium, driven through chromedriver (W3C `WebDriver`). Of Debian's packages `chromium` and
//! `chromium-driver`, which `tests/run` installs.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Connection, free_port, request, until};

/// A browser with one page. Dropping it ends it.
pub struct Browser {
    driver: Driver,
    session: String,
}

/// The chromedriver, the leader of a process group to which the browser belongs.
struct Driver {
    process: Child,
    address: SocketAddr,
}

impl Browser {
    /// # Panics
    /// If Chromium or its driver is missing or does not start.
    pub fn start() -> Self {
        let driver = Driver::start();
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {
                // Root, as whom tests may run, has no sandbox. No test opens a page that is not the relay's.
                "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"],
            },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        }}});
        let session = driver.command("POST", "", &capabilities);
        let id = session["sessionId"]
            .as_str()
            .unwrap_or_else(|| panic!("no session: {session}"));
        Self {
            session: format!("/{id}"),
            driver,
        }
    }

    /// Opens a page and waits until it is loaded.
    pub fn open(&self, url: &str) {
        self.command("/url", &json!({ "url": url }));
    }

    pub fn reload(&self) {
        self.command("/refresh", &json!({}));
    }

    /// What the function body `script` returns.
    pub fn run(&self, script: &str) -> Value {
        self.command("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The visible text of the first element that matches a CSS selector; empty if there is none.
    pub fn text(&self, selector: &str) -> String {
        let selector = json!(selector);
        let text = self.run(&format!(
            "return document.querySelector({selector})?.innerText ?? ''"
        ));
        text.as_str().unwrap().to_owned()
    }

    /// Waits until the visible text of an element contains all of these; returns it.
    #[track_caller]
    pub fn until_text(&self, selector: &str, parts: &[&str]) -> String {
        let mut seen = String::new();
        let found = super::poll(super::TIMEOUT, || {
            seen = self.text(selector);
            parts.iter().all(|part| seen.contains(part))
        });
        assert!(found, "{selector} does not say {parts:?} but:\n{seen}");
        seen
    }

    /// Sets the size of the page, as a phone or a screen has it.
    pub fn resize(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// Has the page believe that the person prefers this colour scheme.
    pub fn prefer(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", &features);
    }

    /// A PNG of the page from its top, at most `height` pixels high.
    pub fn screenshot(&self, height: u32) -> Vec<u8> {
        let size = self.run("return [innerWidth, document.documentElement.scrollHeight]");
        let clip = json!({
            "x": 0, "y": 0, "scale": 1,
            "width": size[0], "height": size[1].as_u64().unwrap().min(height.into()),
        });
        let parameters = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let image = self.devtools("Page.captureScreenshot", &parameters);
        BASE64_STANDARD
            .decode(image["data"].as_str().unwrap())
            .unwrap()
    }

    /// What the console says since the last call, violations of the page's policy included.
    pub fn console(&self) -> Vec<String> {
        let entries = self.log("browser");
        let message = |entry: &Value| entry["message"].as_str().unwrap().to_owned();
        entries.iter().map(message).collect()
    }

    /// The URLs that the page has requested since the last call.
    pub fn requests(&self) -> Vec<String> {
        let entries = self.log("performance");
        let messages = entries.iter().map(|entry| {
            let message: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
            message["message"].clone()
        });
        let sent = messages.filter(|message| message["method"] == "Network.requestWillBeSent");
        sent.map(|message| {
            let url = &message["params"]["request"]["url"];
            url.as_str().unwrap().to_owned()
        })
        .collect()
    }

    /// Runs a command of the Chrome `DevTools` protocol.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.command("/goog/cdp/execute", &body)
    }

    fn log(&self, kind: &str) -> Vec<Value> {
        let entries = self.command("/se/log", &json!({ "type": kind }));
        entries.as_array().unwrap().clone()
    }

    #[track_caller]
    fn command(&self, path: &str, body: &Value) -> Value {
        let path = format!("{}{path}", self.session);
        self.driver.command("POST", &path, body)
    }
}

impl Driver {
    fn start() -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let process = Command::new("chromedriver")
            .arg(format!("--port={}", address.port()))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is missing: run tests/run, which installs it");
        let mut driver = Self { process, address };
        until("chromedriver to be ready", || {
            assert_eq!(driver.process.try_wait().unwrap(), None, "it has ended");
            let mut connection = Connection::open(address).ok()?;
            let answer = connection.request("GET", "/status", b"").ok()?;
            (answer.status == 200).then_some(())
        });
        driver
    }

    /// Sends a command about sessions; returns the value of the answer.
    #[track_caller]
    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let target = format!("/session{path}");
        let answer = request(self.address, method, &target, body.to_string().as_bytes());
        let mut parsed: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(answer.status, 200, "{target} {body}: {parsed}");
        parsed["value"].take()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The browser, too: it is in the group.
        let group = Pid::from_raw(i32::try_from(self.process.id()).unwrap());
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.process.wait();
    }
}
