//! Server-sent events out of the bytes of an answer.

use serde_json::Value;

/// The longest line that is kept: the last event has the whole text.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Collects lines; each with data is an event.
#[derive(Debug, Default)]
pub struct Events(Vec<u8>);

impl Events {
    /// The events that more bytes complete. What is no JSON is left out: such lines are not the server's.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<Value> {
        self.0.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            let data = line.strip_prefix(b"data: ").and_then(|data| serde_json::from_slice(data).ok());
            events.extend(data);
        }
        if self.0.len() > LINE_BYTES_MAX {
            self.0.clear();
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_found_however_their_bytes_are_cut() {
        let text =
            "event: level\ndata: {\"rms\":1}\n\n: nothing\nevent: final\ndata: {\"text\":\"a\\nb\"}\n\n";
        for size in [1, 7, 1_000] {
            let mut events = Events::default();
            let found: Vec<Value> = text.as_bytes().chunks(size).flat_map(|part| events.take(part)).collect();
            assert_eq!(found, [json!({"rms": 1}), json!({"text": "a\nb"})], "{size}");
        }
    }
}
