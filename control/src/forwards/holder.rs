//! Who holds a port: `/proc/net/tcp` names the socket's inode, `/proc/PID/fd` the process that has it open.
//!
//! Only for error messages. What may not be read (other users' processes) is passed over.

use std::fs;

use usernet_core::rules::Protocol;

/// A TCP socket that listens (`include/net/tcp_states.h`).
const TCP_LISTEN: &str = "0A";

/// `NAME (pid N)` of the process that listens on the port, in whichever family.
pub(super) fn of(port: u16, protocol: Protocol) -> Option<String> {
    let tables = match protocol {
        Protocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Protocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let wanted: Vec<String> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| inodes(&table, port, protocol))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if wanted.is_empty() {
        return None;
    }
    let pids = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    let pid = pids.into_iter().find(|&pid| has_open(pid, &wanted))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
    Some(format!("{name} (pid {pid})"))
}

fn has_open(pid: u32, wanted: &[String]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|entry| {
        let link = fs::read_link(entry.path());
        link.is_ok_and(|link| link.to_str().is_some_and(|link| wanted.iter().any(|w| w == link)))
    })
}

/// Inodes of the sockets that hold the port. A line is `sl local_address rem_address st … inode …`.
fn inodes(table: &str, port: u16, protocol: Protocol) -> Vec<String> {
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().and_then(|f| f.rsplit_once(':')).map(|(_, port)| port);
        let Some(local) = local.and_then(|hex| u16::from_str_radix(hex, 16).ok()) else { continue };
        let state = fields.nth(1);
        let holds = match protocol {
            Protocol::Tcp => state == Some(TCP_LISTEN),
            Protocol::Udp => true,
        };
        if local == port && holds {
            // After the state: queues, timer, retransmits, uid, timeout.
            found.extend(fields.nth(5).map(str::to_owned));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 81234 1 0 100\n\
            \x20  1: 0100007F:1F90 0100007F:AAAA 01 00000000:00000000 00:00000000 00000000  1000        0 99 1 0\n";
        assert_eq!(inodes(table, 8080, Protocol::Tcp), ["81234"]);
        assert_eq!(inodes(table, 8080, Protocol::Udp), ["81234", "99"]);
        assert!(inodes(table, 80, Protocol::Tcp).is_empty());
        assert!(inodes("sl\n 0: x\n\n", 80, Protocol::Tcp).is_empty());
    }
}
