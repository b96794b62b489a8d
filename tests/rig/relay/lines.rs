//! The output of a process, line by line.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

use super::super::until;

/// Lines that a process writes, collected as they arrive.
#[derive(Clone, Default)]
pub struct Lines {
    collected: Arc<Mutex<(Vec<String>, bool)>>,
    /// Holding it pauses the collection.
    pub(super) paused: Arc<Mutex<()>>,
}

impl Lines {
    pub fn collect_from(&self, from: impl Read + Send + 'static) {
        let lines = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                drop(lines.paused.lock().unwrap());
                lines.collected.lock().unwrap().0.push(line);
            }
            lines.collected.lock().unwrap().1 = true;
        });
    }

    pub fn all(&self) -> Vec<String> {
        self.collected.lock().unwrap().0.clone()
    }

    /// The lines that are events. Skips empty lines: after a failed write the relay writes a newline, in case it wrote
    /// a partial line.
    pub fn events(&self) -> Vec<Value> {
        let lines = self.all().into_iter().filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect()
    }

    pub fn until_closed(&self) {
        until("the output to be closed", || {
            self.collected.lock().unwrap().1.then_some(())
        });
    }
}
