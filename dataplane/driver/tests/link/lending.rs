//! Several downloads at a time: flows that go to a second thread, and come back.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::guest::{Guest, Options, PATIENCE, Pattern, becomes, counter};

on_both_backends! {
    several_downloads_are_lent_arrive_whole_and_come_back,
    one_download_stays_where_it_is,
}

/// What is sent, over and over.
const BLOCK: usize = 1 << 20;

/// Asks for bytes without end, for an end of them, and for an answer.
const BEGIN: u8 = b'b';
const STOP: u8 = b's';
const ASK: u8 = b'?';

fn block() -> Arc<[u8]> {
    let mut bytes = vec![0; BLOCK];
    Pattern(7).fill(&mut bytes);
    bytes.into()
}

/// Serves one client: whole blocks between `BEGIN` and `STOP`, each question with itself.
fn serve(mut client: TcpStream, block: &[u8]) -> io::Result<()> {
    let mut word = [0];
    while client.read(&mut word)? == 1 {
        if word[0] != BEGIN {
            client.write_all(&word)?;
            continue;
        }
        client.set_nonblocking(true)?;
        loop {
            let stopped = client.peek(&mut word).is_ok();
            client.set_nonblocking(false)?;
            client.write_all(block)?;
            if stopped {
                break;
            }
            client.set_nonblocking(true)?;
        }
        // The word that ended it is answered: so everybody knows where the blocks end.
        client.read_exact(&mut word)?;
        client.write_all(&[STOP])?;
    }
    Ok(())
}

/// Reads blocks until it is told to stop and they have ended, and compares them: how many bytes they were.
fn download(stream: &mut TcpStream, block: &[u8], is_enough: &AtomicBool) -> io::Result<usize> {
    stream.write_all(&[BEGIN])?;
    let (mut all, mut asked) = (0, false);
    let mut bytes = vec![0; BLOCK];
    loop {
        if !asked && is_enough.load(Ordering::Relaxed) {
            stream.write_all(&[STOP])?;
            asked = true;
        }
        // A block that is followed by the word's answer ends there.
        if asked && all % BLOCK == 0 {
            let mut first = [0];
            stream.peek(&mut first)?;
            if first[0] == STOP && block[0] != STOP {
                stream.read_exact(&mut first)?;
                return Ok(all);
            }
        }
        let place = all % BLOCK;
        let len = stream.read(&mut bytes[..BLOCK - place])?;
        if len == 0 || bytes[..len] != block[place..place + len] {
            return Err(io::Error::other(format!("other bytes behind {all}")));
        }
        all += len;
    }
}

fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&[ASK])?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if answer[0] == ASK { Ok(()) } else { Err(io::Error::other("another answer")) }
}

/// So many connections with a server of their own each.
fn connected(guest: &Guest, count: usize, block: &Arc<[u8]>) -> Vec<TcpStream> {
    let (gateway, loopback) = guest.gateways()[0];
    let listener = TcpListener::bind((loopback, 0)).expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let connect = move || TcpStream::connect((gateway, port));
    (0..count)
        .map(|_| {
            let stream = guest.namespace.run(connect).expect("a connection");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let (client, _) = listener.accept().expect("the client");
            let block = Arc::clone(block);
            thread::spawn(move || serve(client, &block));
            stream
        })
        .collect()
}

/// Downloads over all of them at a time, until `is_enough`: their bytes.
fn download_all(
    streams: &mut [TcpStream],
    block: &[u8],
    is_enough: impl FnOnce() -> bool,
) -> Vec<usize> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let downloads: Vec<_> = streams
            .iter_mut()
            .map(|stream| scope.spawn(|| download(stream, block, &stop)))
            .collect();
        let was_enough = is_enough();
        stop.store(true, Ordering::Relaxed);
        let bytes = downloads.into_iter().map(|d| d.join().expect("no panic").expect("all of it"));
        let bytes = bytes.collect();
        assert!(was_enough, "it has not come about: {bytes:?} bytes");
        bytes
    })
}

fn several_downloads_are_lent_arrive_whole_and_come_back(options: &Options) {
    let guest = Guest::start(&Options { borrowers: 1, ..options.clone() });
    let block = block();
    let mut streams = connected(&guest, 4, &block);
    let lent = || counter(&guest, "driver_flows_lent");
    let borrowed = || guest.handle.workers().expect("running")[1].tcp_flows;
    for _ in 0..2 {
        let before = lent();
        download_all(&mut streams, &block, || becomes(|| lent() > before));
        assert!(becomes(|| borrowed() == 0), "they are at home again");
        assert!(lent() >= before + 2, "which is counted, too");
        streams.iter_mut().try_for_each(ask).expect("answers");
    }
    assert_eq!(guest.handle.flows().expect("running").len(), 4);
    drop(streams);
    assert!(becomes(|| guest.handle.status().expect("running").sockets_in_use == 0));
}

fn one_download_stays_where_it_is(options: &Options) {
    let guest = Guest::start(&Options { borrowers: 1, ..options.clone() });
    let block = block();
    let mut streams = connected(&guest, 1, &block);
    // Hundreds of times what several need to be lent.
    let is_enough = || counter(&guest, "bytes_to_guest") >= 256 << 20;
    download_all(&mut streams, &block, || becomes(is_enough));
    assert_eq!(counter(&guest, "driver_flows_lent"), 0);
}
