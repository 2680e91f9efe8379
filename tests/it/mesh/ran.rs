//! What a command printed, and how it ended.

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    /// Both outputs.
    pub text: String,
    pub(super) stdout: String,
}

impl Ran {
    /// Its output; it must have succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.text);
        self.text
    }

    /// Its standard output as JSON; it must have succeeded.
    pub fn json(self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{}", self.text);
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}
