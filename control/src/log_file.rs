//! A log file that does not grow without end.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// A file whose oldest lines go when it is full. It is written by one process.
#[derive(Debug)]
pub(crate) struct LimitedFile {
    file: File,
    /// Where the next line goes.
    end: u64,
    bytes_max: u64,
}

impl LimitedFile {
    /// Opens it, and goes on behind what is in it. Needs no right later than this.
    pub(crate) fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let mut options = File::options();
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let end = file.metadata()?.len();
        Ok(Self { file, end, bytes_max })
    }

    /// Keeps the younger half, from the start of a line.
    fn make_room(&mut self) -> io::Result<()> {
        let keep = usize::try_from(self.bytes_max / 2).unwrap_or(usize::MAX);
        let from = self.end.saturating_sub(keep as u64);
        let mut kept = vec![0; usize::try_from(self.end - from).unwrap_or(keep)];
        self.file.read_exact_at(&mut kept, from)?;
        let line = kept.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let kept = kept.get(line..).unwrap_or_default();
        self.file.write_all_at(kept, 0)?;
        self.end = kept.len() as u64;
        self.file.set_len(self.end)
    }
}

impl Write for LimitedFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.end + line.len() as u64 > self.bytes_max {
            self.make_room()?;
        }
        self.file.write_all_at(line, self.end)?;
        self.end += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lines_go_and_the_file_stays_below_its_size() {
        let path = std::env::temp_dir().join(format!("usernet-log-{}", std::process::id()));
        std::fs::write(&path, "line before\n").expect("our own file");
        let mut log = LimitedFile::open(&path, 4_096).expect("our own file");
        for n in 0..1_000 {
            writeln!(log, "line {n}").expect("a line");
            let length = std::fs::metadata(&path).expect("our own file").len();
            assert!(length <= 4_096, "{length}");
        }
        let text = std::fs::read_to_string(&path).expect("our own file");
        std::fs::remove_file(&path).expect("our own file");
        assert!(text.ends_with("line 998\nline 999\n") && text.starts_with("line "), "{text}");
        assert!(!text.contains("line before"));
    }
}
