//! Datagrams under observation: each says in its payload which it is, and the book knows how often it was sent, how often it
//! arrived, and how often its answer did.

use std::collections::BTreeMap;

use crate::pattern::Pattern;

/// Bytes of a letter that name it.
pub const NAME_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    sent: u32,
    arrived: u32,
    answered: u32,
    returned: u32,
}

/// All letters of all correspondents.
#[derive(Debug)]
pub struct Mail {
    records: BTreeMap<(u32, u32), Record>,
    /// A frame may come twice: so may what was in it.
    has_duplicates: bool,
}

/// Payload number `index` of correspondent `writer`, `size` bytes long.
pub fn letter(writer: u32, index: u32, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    if size < NAME_BYTES {
        return bytes;
    }
    bytes[0..4].copy_from_slice(&writer.to_be_bytes());
    bytes[4..8].copy_from_slice(&index.to_be_bytes());
    pattern(writer, index).fill(0, &mut bytes[NAME_BYTES..]);
    bytes
}

/// Who wrote a letter that is long enough to say so.
pub fn writer(bytes: &[u8]) -> Option<u32> {
    let (name, _) = bytes.split_first_chunk::<NAME_BYTES>()?;
    name.first_chunk().map(|writer| u32::from_be_bytes(*writer))
}

fn pattern(writer: u32, index: u32) -> Pattern {
    Pattern(1 << 63 | u64::from(writer) << 32 | u64::from(index))
}

/// The name of a letter in the book. Those too short to have one are told by their length.
fn name(writer: u32, bytes: &[u8]) -> (u32, u32) {
    let Some((name, rest)) = bytes.split_first_chunk::<NAME_BYTES>() else {
        assert!(bytes.iter().all(|b| *b == 0), "a short letter holds zeros");
        return (writer, u32::MAX - bytes.len() as u32);
    };
    let [a, b, c, d, e, f, g, h] = *name;
    let (from, index) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
    assert_eq!(from, writer, "a letter came to the wrong address");
    let mismatch = pattern(from, index).mismatch(0, rest);
    assert_eq!(mismatch, None, "a letter's contents changed on the way ({} bytes)", bytes.len());
    (writer, index)
}

impl Mail {
    /// An empty book.
    pub fn new(has_duplicates: bool) -> Self {
        Self { records: BTreeMap::new(), has_duplicates }
    }

    fn record(&mut self, writer: u32, bytes: &[u8]) -> &mut Record {
        self.records.entry(name(writer, bytes)).or_default()
    }

    /// A letter is posted.
    pub fn on_sent(&mut self, writer: u32, bytes: &[u8]) {
        self.record(writer, bytes).sent += 1;
    }

    /// It arrives at the other end.
    pub fn on_arrived(&mut self, writer: u32, bytes: &[u8]) {
        let times = self.times();
        let record = self.record(writer, bytes);
        record.arrived += 1;
        assert!(record.arrived <= record.sent * times, "a letter arrived that was not sent");
    }

    /// The other end sends it back, `times` times.
    pub fn on_answered(&mut self, writer: u32, bytes: &[u8], times: u32) {
        self.record(writer, bytes).answered += times;
    }

    /// It is back.
    pub fn on_returned(&mut self, writer: u32, bytes: &[u8]) {
        let times = self.times();
        let record = self.record(writer, bytes);
        record.returned += 1;
        assert!(record.returned <= record.answered * times, "an answer came that nobody sent");
    }

    fn times(&self) -> u32 {
        if self.has_duplicates { 2 } else { 1 }
    }

    /// Where nothing is lost on purpose, everything has come.
    pub fn complete_verdict(&self) -> Result<(), String> {
        for ((writer, index), record) in &self.records {
            if record.arrived != record.sent || record.returned != record.answered {
                return Err(format!("letter {index} of {writer} is missing: {record:?}"));
            }
        }
        Ok(())
    }
}
