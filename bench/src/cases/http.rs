//! HTTP requests over connections that stay: `wrk` in the guest, `nginx` on the host.
//!
//! Each measurement has a port of its own: who closes 10,000 connections first leaves 10,000 ports in TIME_WAIT
//! for a minute, of the 28,232 that the system chooses from for one and the same server.

use std::fs;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use usernet_lab::{Lab, Running, skip, wait_until};

use crate::Effort;
use crate::collector::{Collector, Metric};
use crate::session::{Family, Joined, Session};

/// Connections that stay open.
const CONNECTIONS: [u16; 3] = [16, 1_000, 10_000];
/// Descriptors that a program has open besides its connections, or fewer.
const OTHER_FILES: u64 = 100;
/// For connections that do not come about, and what is left of a machine that is busy.
const GRACE: Duration = Duration::from_secs(20);
/// Where the first measurement's server listens.
const FIRST_PORT: u16 = 8_100;

pub(crate) fn run(session: &Session<'_>, effort: &Effort, collector: &mut Collector<'_>) {
    if let Some(why) = skip::missing(&["wrk", "nginx"]) {
        return collector.fail("HTTP", why);
    }
    for connections in CONNECTIONS {
        let label = format!("HTTP ×{connections}");
        let outcome = enough_files(connections)
            .and_then(|()| one(session, effort, connections, &label, collector));
        if let Err(why) = outcome {
            collector.fail(label, why);
        }
    }
}

/// The limit for a process was raised as far as it goes when the comparison began.
fn enough_files(connections: u16) -> Result<(), String> {
    let needed = u64::from(connections) + OTHER_FILES;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(limit) if limit < needed => {
            Err(format!("a process may open {limit} files here, and needs {needed}: ulimit -Hn"))
        }
        Some(_) | None => Ok(()),
    }
}

fn one(
    session: &Session<'_>,
    effort: &Effort,
    connections: u16,
    label: &str,
    collector: &mut Collector<'_>,
) -> Result<(), String> {
    let (_nginx, port) = start_nginx(session.lab)?;
    // Connecting is part of the time; with 10,000 it is most of a second.
    let seconds = match (effort.is_quick, connections) {
        (true, 10_000) => 2,
        (true, _) => 1,
        (false, 10_000) => 4,
        (false, _) => 2,
    };
    let (url, n) = (format!("http://{}/", Family::V4.socket(port)), connections.to_string());
    let duration = format!("{seconds}s");
    let wrk = ["wrk", "-t2", "-c", &n, "-d", &duration, "--timeout", "1s", "--latency", &url];
    let before = session.cpu();
    let done = session.client().run_within(Duration::from_secs(seconds) + GRACE, &wrk);
    let used = session.cpu() - before;
    let said = Wrk::parse(&done.out).ok_or_else(|| done.to_string())?;
    let metric = Metric::rate(format!("http.{n}"), label, "1/s");
    collector.add_cpu(&metric, used, said.requests / 1e3, "s/1000");
    let sample = collector.add(metric, said.rate);
    for (kind, n) in said.errors {
        sample.also(kind, n);
    }
    // Nobody was answered: that is not a short time.
    if said.requests == 0.0 {
        return Err("no request was answered".to_owned());
    }
    if let Some((_, p99)) = said.latency_us.iter().find(|(percent, _)| *percent == 99.0) {
        let id = format!("http.{n}.p99");
        let sample = collector.add(Metric::cost(id, format!("{label}, 99 %"), "µs"), *p99);
        sample.distribution(said.latency_us.clone());
    }
    Ok(())
}

/// A server of its own, and its port.
fn start_nginx(lab: &Lab) -> Result<(Running, u16), String> {
    static NUMBER: AtomicU16 = AtomicU16::new(0);
    let port = FIRST_PORT + NUMBER.fetch_add(1, Ordering::Relaxed) % 10_000;
    let dir = lab.dir().to_string_lossy().into_owned();
    let path = format!("{dir}/nginx.conf");
    fs::write(&path, configuration(&dir, port)).map_err(|error| format!("{path}: {error}"))?;
    let mut nginx = lab.host().spawn(&["nginx", "-e", "stderr", "-p", &dir, "-c", &path]);
    let is_there = || lab.host().listens_on(port) || !nginx.is_running();
    if !wait_until(Duration::from_secs(5), is_there) || !nginx.is_running() {
        return Err(format!("nginx does not listen: {}", nginx.done_within(Duration::ZERO)));
    }
    Ok((nginx, port))
}

/// One process, no files, no logs; connections stay for as many requests as anybody sends.
fn configuration(dir: &str, port: u16) -> String {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/run;"))
        .join(" ");
    format!(
        "daemon off; worker_processes 1; pid {dir}/run/nginx.pid;
        events {{ worker_connections 15000; multi_accept on; }}
        http {{
            access_log off; {temporary}
            keepalive_requests 1000000000; keepalive_timeout 1h;
            server {{
                listen 0.0.0.0:{port} backlog=16384;
                location / {{ default_type text/plain; return 200 'a small answer\\n'; }}
            }}
        }}"
    )
}

/// What wrk printed.
#[derive(Debug, Default, PartialEq)]
struct Wrk {
    requests: f64,
    rate: f64,
    /// Percentile, time.
    latency_us: Vec<(f64, f64)>,
    errors: Vec<(&'static str, f64)>,
}

impl Wrk {
    /// None if it says no rate: it did not come to its end.
    fn parse(text: &str) -> Option<Self> {
        let (mut said, mut is_over) = (Self::default(), false);
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [percent, time] if percent.ends_with('%') => {
                    let percent = percent.trim_end_matches('%').parse().ok()?;
                    said.latency_us.push((percent, microseconds(time)?));
                }
                [requests, "requests", "in", ..] => said.requests = requests.parse().ok()?,
                ["Requests/sec:", rate] => {
                    said.rate = rate.parse().ok()?;
                    is_over = true;
                }
                ["Socket", "errors:", "connect", c, "read", r, "write", w, "timeout", t] => {
                    for (kind, n) in
                        ["connect", "read", "write", "timeout"].into_iter().zip([c, r, w, t])
                    {
                        said.errors.push((kind, n.trim_end_matches(',').parse().ok()?));
                    }
                }
                ["Non-2xx", .., n] => said.errors.push(("status", n.parse().ok()?)),
                _ => {}
            }
        }
        is_over.then_some(said)
    }
}

/// `1.23ms` and the like.
fn microseconds(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 6e7), ("h", 3.6e9)];
    let (number, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    Some(number.parse::<f64>().ok()? * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_understood() {
        let text = "Running 1s test @ http://192.0.2.1:8100/
  2 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   219.73us  100.00us   1.20ms   90.00%
    Req/Sec    35.49k     1.20k   36.00k    80.00%
  Latency Distribution
     50%  205.00us
     75%    1.50ms
     90%    2.00s
     99%    1.02m
  77778 requests in 1.10s, 63.05MB read
  Socket errors: connect 1, read 10, write 0, timeout 3
  Non-2xx or 3xx responses: 5
Requests/sec:  70711.30
Transfer/sec:     57.32MB
";
        let said = Wrk::parse(text).expect("it is complete");
        assert_eq!((said.requests, said.rate), (77_778.0, 70_711.3));
        let times = [(50.0, 205.0), (75.0, 1_500.0), (90.0, 2e6), (99.0, 6.12e7)];
        assert_eq!(said.latency_us, times);
        let errors =
            [("connect", 1.0), ("read", 10.0), ("write", 0.0), ("timeout", 3.0), ("status", 5.0)];
        assert_eq!(said.errors, errors);
        assert_eq!(Wrk::parse("unable to connect to 192.0.2.1:8100 Connection refused\n"), None);
    }
}
