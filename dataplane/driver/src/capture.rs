//! A capture file of every frame (pcap with nanoseconds, link type Ethernet).
//!
//! Super-frames are written as they are; partial checksums are completed in a copy, so that the file reads as if
//! the frames had been on a wire.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use usernet_core::Offload;
use usernet_core::op::FRAME_BYTES_MAX;
use usernet_core::packet::offload::complete_checksum;

/// Nanosecond pcap, in the host's byte order.
const MAGIC: u32 = 0xa1b2_3c4d;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;
/// Seconds, nanoseconds, bytes kept, bytes there were.
const RECORD_BYTES: usize = 16;

/// An open capture file. Workers write to the same one, a record at a time.
#[derive(Clone)]
pub(crate) struct Capture(Arc<Mutex<Open>>);

struct Open {
    file: File,
    /// One record.
    record: Vec<u8>,
}

impl Capture {
    /// Writes the file's header.
    pub(crate) fn new(mut file: File) -> io::Result<Self> {
        let mut header = Vec::with_capacity(24);
        header.extend(MAGIC.to_ne_bytes());
        for half in [2_u16, 4] {
            header.extend(half.to_ne_bytes());
        }
        for word in [0, 0, FRAME_BYTES_MAX as u32, ETHERNET] {
            header.extend(word.to_ne_bytes());
        }
        file.write_all(&header)?;
        let record = Vec::with_capacity(RECORD_BYTES + FRAME_BYTES_MAX);
        Ok(Self(Arc::new(Mutex::new(Open { file, record }))))
    }

    /// Writes a frame.
    pub(crate) fn write(&self, frame: &[u8], offload: Offload) -> io::Result<()> {
        // A worker that panicked has left a record behind, or none: the next one starts anew.
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Open { file, record } = &mut *open;
        // Read under the lock, so that the records' times go one way.
        let now: Duration = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        record.clear();
        let len = frame.len() as u32;
        for word in [now.as_secs() as u32, now.subsec_nanos(), len, len] {
            record.extend(word.to_ne_bytes());
        }
        record.extend_from_slice(frame);
        complete_checksum(&mut record[RECORD_BYTES..], &offload);
        file.write_all(record)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use usernet_core::op::{Checksum, Gso};

    use super::*;

    #[test]
    fn a_capture_file_holds_frames_with_complete_checksums() {
        let path = std::env::temp_dir().join(format!("capture-{}.pcap", std::process::id()));
        let capture = Capture::new(File::create(&path).expect("a file")).expect("room");
        let mut frame = [0; 60];
        frame[14] = 0x45;
        frame[50..52].copy_from_slice(&[0xff, 0x00]);
        let checksum = Checksum::Partial { start: 34, offset: 16 };
        capture.write(&frame, Offload { checksum, gso: Gso::None }).expect("room");
        let bytes = fs::read(&path).expect("written");
        fs::remove_file(&path).expect("ours");
        assert_eq!(bytes.len(), 24 + RECORD_BYTES + 60);
        assert_eq!(bytes[..4], MAGIC.to_ne_bytes());
        assert_eq!(bytes[20..24], ETHERNET.to_ne_bytes());
        assert_eq!(bytes[32..36], 60_u32.to_ne_bytes());
        assert_eq!(bytes[24 + RECORD_BYTES + 50..][..2], [0x00, 0xff]);
    }
}
