//! What was said in a chat. It is nowhere but in memory, and bounded there.

use serde_json::{Value, json};
use std::collections::VecDeque;

/// Turns that are kept: with a system's message, fewer messages than a request may have.
const TURNS_MAX: usize = 500;
/// Bytes of texts that are kept: as JSON in most languages less than a request may have.
const BYTES_MAX: usize = 2 * 1024 * 1024;

/// A chat from its first message that is still known.
#[derive(Debug, Default)]
pub struct History {
    system: Option<String>,
    turns: VecDeque<Turn>,
}

#[derive(Debug)]
struct Turn {
    said: String,
    answered: Option<String>,
}

impl Turn {
    fn bytes(&self) -> usize {
        self.said.len() + self.answered.as_ref().map_or(0, String::len)
    }
}

impl History {
    /// Nothing was said yet.
    pub fn new(system: Option<String>) -> Self {
        Self { system, turns: VecDeque::new() }
    }

    /// What stands before everything else from now on; nothing where it is empty.
    pub fn set_system(&mut self, text: &str) {
        self.system = (!text.is_empty()).then(|| text.to_owned());
    }

    /// Begins a turn; how many of the oldest had to be forgotten for it.
    pub fn say(&mut self, text: String) -> usize {
        self.turns.push_back(Turn { said: text, answered: None });
        let mut forgotten = 0;
        while self.is_over() && self.forget_oldest() {
            forgotten += 1;
        }
        forgotten
    }

    /// Ends the turn.
    pub fn answer(&mut self, text: &str) {
        if let Some(turn) = self.turns.back_mut() {
            turn.answered = Some(text.to_owned());
        }
    }

    /// Forgets the turn that was begun and not answered.
    pub fn take_back(&mut self) {
        if self.turns.back().is_some_and(|turn| turn.answered.is_none()) {
            self.turns.pop_back();
        }
    }

    /// Forgets the oldest turn; false where only the last is there.
    pub fn forget_oldest(&mut self) -> bool {
        self.turns.len() > 1 && self.turns.pop_front().is_some()
    }

    /// Forgets all turns.
    pub fn clear(&mut self) {
        self.turns.clear();
    }

    /// As a request has them.
    pub fn messages(&self) -> Value {
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let system = self.system.iter().map(|text| message("system", text));
        let turns = self.turns.iter().flat_map(|turn| {
            let answered = turn.answered.iter().map(|text| message("assistant", text));
            std::iter::once(message("user", &turn.said)).chain(answered)
        });
        system.chain(turns).collect()
    }

    fn is_over(&self) -> bool {
        self.turns.len() > TURNS_MAX || self.turns.iter().map(Turn::bytes).sum::<usize>() > BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(history: &History) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let messages = history.messages();
        messages.as_array().unwrap().iter().map(|m| (text(&m["role"]), text(&m["content"]))).collect()
    }

    #[test]
    fn a_chat_is_its_turns_behind_the_systems_message() {
        let mut history = History::new(Some("Be brief.".to_owned()));
        history.say("a".to_owned());
        history.answer("b");
        history.say("c".to_owned());
        let roles: Vec<String> =
            said(&history).into_iter().map(|(role, text)| format!("{role} {text}")).collect();
        assert_eq!(roles, ["system Be brief.", "user a", "assistant b", "user c"]);
        history.take_back();
        history.take_back();
        assert_eq!(said(&history).len(), 3, "an answered turn stays");
        history.set_system("");
        history.clear();
        assert!(said(&history).is_empty());
    }

    #[test]
    fn the_oldest_goes_first_and_the_last_stays() {
        let mut history = History::default();
        for turn in 0..TURNS_MAX {
            assert_eq!(history.say(turn.to_string()), 0);
            history.answer("");
        }
        assert_eq!(history.say("last".to_owned()), 1);
        assert_eq!(said(&history)[0].1, "1");
        assert_eq!(history.say("x".repeat(BYTES_MAX + 1)), TURNS_MAX);
        assert!(!history.forget_oldest());
        assert_eq!(said(&history).len(), 1);
    }
}
