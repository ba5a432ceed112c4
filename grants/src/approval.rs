//! What the operator's key signs where the approver has the asker's uid: all that the approver was shown.

use crate::visible::visible;

/// An approval in words. Both who signs and who checks make the text from what they know themselves.
#[derive(Clone, Copy, Debug)]
pub struct Approval<'a> {
    /// The server's run.
    pub run: &'a str,
    /// The grant's number in it.
    pub grant: u64,
    /// Who asks.
    pub client: &'a str,
    /// `file_read`, `file_write` or `audio_capture`.
    pub kind: &'a str,
    /// The path, or the source of sound, as it was asked for.
    pub path: &'a str,
    /// Where the bytes go, as it is shown.
    pub audience: &'a str,
    /// Device and inode of the opened object; 0 and 0 of a source of sound.
    pub object: (u64, u64),
    /// How long it is to live, in milliseconds.
    pub lifetime_ms: u64,
    /// Bytes in all; 0 of sound.
    pub bytes_max: u64,
    /// Whether copies may be handed over.
    pub snapshot: bool,
}

impl Approval<'_> {
    /// The bytes that are signed: one fact a line, none of which can hold the end of a line.
    pub fn text(&self) -> String {
        let (device, inode) = self.object;
        format!(
            "ringfence grant approval\nrun {}\ngrant {}\nclient {}\nkind {}\npath {}\naudience {}\nobject {device}:{inode}\n\
             lifetime_ms {}\nbytes_max {}\nsnapshot {}\n",
            visible(self.run),
            self.grant,
            visible(self.client),
            visible(self.kind),
            visible(self.path),
            visible(self.audience),
            self.lifetime_ms,
            self.bytes_max,
            self.snapshot
        )
    }
}
