use proptest::prelude::*;

use super::*;
use crate::PresharedKey;

const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PEER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";
const SHARED: &str = "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak=";

fn parsed(text: &str) -> Parsed {
    parse("wg0.conf", text).unwrap_or_else(|e| panic!("{e}"))
}

fn error(text: &str) -> String {
    parse("wg0.conf", text).expect_err(text).to_string()
}

#[test]
fn every_key_is_read_in_any_case_with_comments_and_lists() {
    let text = format!(
        "# of my provider\n[interface]\nprivatekey={KEY} # mine\naddress = 10.0.0.2/24, fd00::2/64\n\
         ADDRESS = 10.9.0.1\nDNS = 10.0.0.1,corp.example\nDNS = fd00::1\nMtu = 1400\n\
         ListenPort = 51820\nTable = 0x100\n\n[PEER]\r\nPublicKey = {PEER}\r\n\
         PresharedKey = {SHARED}\nEndpoint = vpn.example.com:51820\n\
         AllowedIPs = 0.0.0.0/0, ::/0\nAllowedIPs = 10.1.2.3\nPersistentKeepalive = 25\n\
         [Peer]\nPublicKey = {OTHER}\nEndpoint = [2001:db8::1]:1\nPersistentKeepalive = off\n\
         AllowedIPs =\n"
    );
    let Parsed { config: Config { interface, peers }, warnings } = parsed(&text);
    assert_eq!(warnings, []);
    assert_eq!(*interface.private_key.to_base64(), KEY);
    let nets = |list: &str| list.split(' ').map(|n| n.parse().unwrap()).collect::<Vec<IpNet>>();
    assert_eq!(interface.addresses, nets("10.0.0.2/24 fd00::2/64 10.9.0.1/32"));
    let addresses: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    assert_eq!((interface.dns, interface.search), (addresses, vec!["corp.example".to_owned()]));
    assert_eq!((interface.mtu, interface.listen_port), (Some(1400), Some(51820)));
    assert_eq!(interface.table, Table::Number(256));
    let first = &peers[0];
    assert_eq!(first.public_key.to_string(), PEER);
    assert_eq!(*first.preshared_key.as_ref().unwrap().to_base64(), SHARED);
    assert_eq!(first.endpoint, Some(Endpoint::Name("vpn.example.com".to_owned(), 51820)));
    assert_eq!(first.allowed_ips, nets("0.0.0.0/0 ::/0 10.1.2.3/32"));
    assert_eq!(first.persistent_keepalive, Some(Duration::from_secs(25)));
    let second = &peers[1];
    assert_eq!(second.endpoint, Some(Endpoint::Address("[2001:db8::1]:1".parse().unwrap())));
    assert_eq!((second.allowed_ips.len(), second.persistent_keepalive), (0, None));
}

#[test]
fn what_does_not_apply_here_is_told_and_done_without() {
    let text = format!(
        "[Interface]\nPrivateKey = {KEY}\nPreUp = a\nPostUp = iptables -A x; y = z\nPreDown = b\nPostDown = c\n\
         FwMark = 0xca6c\nSaveConfig = true\n[Peer]\nPublicKey = {PEER}\nAllowedIPs = 10.0.0.1/24\n\
         [Peer]\nPublicKey = {OTHER}\nAllowedIPs = 10.0.0.0/24\n"
    );
    let Parsed { config, warnings } = parsed(&text);
    let told: Vec<_> = warnings.iter().map(|w| format!("{}: {}", w.line, w.what)).collect();
    for (told, expected) in told.iter().zip([
        "3: PreUp is not run",
        "4: PostUp is not run",
        "5: PreDown is not run",
        "6: PostDown is not run",
        "7: FwMark does nothing",
        "8: SaveConfig does nothing",
        "11: AllowedIPs: 10.0.0.1/24 is taken as the network 10.0.0.0/24",
        "12: AllowedIPs: 10.0.0.0/24 is in the [Peer] of line 9 too; this one gets it",
    ]) {
        assert!(told.starts_with(expected), "{told}");
    }
    assert_eq!(told.len(), 8);
    assert_eq!(config.peers[0].allowed_ips, []);
    assert_eq!(config.peers[1].allowed_ips, ["10.0.0.0/24".parse().unwrap()]);
    let text = format!("[Interface]\nPrivateKey = {KEY}\nFwMark = off\nSaveConfig = false\n");
    assert_eq!(parsed(&text).warnings, [], "what says that nothing is wanted is no news");
}

#[test]
fn every_error_in_the_interface_names_the_file_the_line_and_what_to_write() {
    assert_errors(&[
        (String::new(), "wg0.conf: no [Interface]"),
        ("PrivateKey = x".to_owned(), "wg0.conf:1: a line before the first section"),
        (
            "[Interface]\n".to_owned(),
            "wg0.conf: no PrivateKey in [Interface]; write one that `wg genkey`",
        ),
        (
            "[Interface]\nPrivateKey = x\n".to_owned(),
            "wg0.conf:2: PrivateKey: not a key: a key is 44",
        ),
        (with(&format!("PrivateKey = {KEY}")), "wg0.conf:3: a second PrivateKey"),
        (with("[Interface]"), "wg0.conf:3: a second [Interface]"),
        (with("[Wireguard]"), "wg0.conf:3: an unknown section; there are [Interface] and [Peer]"),
        (with("Jc = 4"), "wg0.conf:3: unknown key Jc; [Interface] has PrivateKey, Address"),
        (with("nonsense"), "wg0.conf:3: neither a [section] nor KEY = VALUE"),
        (
            with("Address = 10.0.0.2/33"),
            "wg0.conf:3: Address: \"10.0.0.2/33\" is no address; write 10.0.0.2/24",
        ),
        (with("Address = host.example"), "Address: \"host.example\" is no address"),
        (with("DNS = a b"), "wg0.conf:3: DNS: \"a b\" is neither an address nor a search domain"),
        (with("MTU = 100"), "wg0.conf:3: MTU: write a number of bytes, 576 to 65472"),
        (
            with("MTU = 1000\nAddress = fd00::1/64"),
            "wg0.conf:3: MTU: 1000 is below the 1280 that an IPv6 Address needs",
        ),
        (with("ListenPort = 70000"), "wg0.conf:3: ListenPort: write a port"),
        (with("Table = vpn"), "wg0.conf:3: Table: write auto, off, main or the number"),
    ]);
}

#[test]
fn every_error_in_a_peer_names_the_file_the_line_and_what_to_write() {
    assert_errors(&[
        (
            with("[Peer]\nAllowedIPs = ::/0"),
            "wg0.conf:3: a [Peer] without PublicKey; add that of the other end",
        ),
        (
            with("[Peer]\nPublicKey = HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="),
            "wg0.conf:3: a [Peer] with our own key",
        ),
        (
            peer(&format!("[Peer]\nPublicKey = {PEER}")),
            "wg0.conf:5: the same PublicKey as in the [Peer] of line 3",
        ),
        (peer("PublicKey = x"), "wg0.conf:5: a second PublicKey"),
        (peer("PresharedKey = x"), "wg0.conf:5: PresharedKey: not a key"),
        (
            peer("Endpoint = 192.0.2.1"),
            "wg0.conf:5: Endpoint: \"192.0.2.1\" is not HOST:PORT, with an IPv6 address in brackets",
        ),
        (peer("Endpoint = fe80::1:80"), "is not HOST:PORT"),
        (peer("Endpoint = 192.0.2.1.1:80"), "is not HOST:PORT"),
        (peer("Endpoint = host:0"), "is not HOST:PORT"),
        (
            peer("AllowedIPs = 10.0.0.0/8 10.1.0.0/16"),
            "AllowedIPs: \"10.0.0.0/8 10.1.0.0/16\" is no address",
        ),
        (peer("PersistentKeepalive = 65536"), "PersistentKeepalive: write off, or seconds"),
        (peer("MTU = 1400"), "wg0.conf:5: unknown key MTU; [Peer] has PublicKey"),
        (peer("= 3"), "wg0.conf:5: a line without a key"),
        (" ".repeat(FILE_BYTES_MAX + 1), "wg0.conf: too long"),
        (with(&"[Peer]\n".repeat(PEERS_MAX + 1)), "too many peers; a file has 4096 at most"),
        (
            with(&format!("Address = {}", "10.0.0.1,".repeat(ADDRESSES_MAX + 1))),
            "Address: too many; there may be 64",
        ),
        (
            peer(&format!("AllowedIPs = {}", "::/0,".repeat(NETWORKS_MAX + 1))),
            "too many AllowedIPs",
        ),
    ]);
}

/// A file with this line in `[Interface]`.
fn with(line: &str) -> String {
    format!("[Interface]\nPrivateKey = {KEY}\n{line}\n")
}

/// A file with this line in `[Peer]`.
fn peer(line: &str) -> String {
    with(&format!("[Peer]\nPublicKey = {PEER}\n{line}"))
}

/// Asserts what is told of these files.
fn assert_errors(cases: &[(String, &str)]) {
    for (text, told) in cases {
        let error = error(text);
        assert!(error.contains(told), "{told}: {error}");
    }
}

#[test]
fn no_secret_gets_into_an_error_wherever_it_is_misplaced() {
    let bare = &KEY[..43];
    for line in [
        format!("PrivateKey = {KEY}x"),
        format!("PrivateKey {KEY}"),
        KEY.to_owned(),
        bare.to_owned(),
        format!("{bare} = 3"),
        format!("Address = {KEY}"),
        format!("DNS = {KEY}"),
        format!("MTU = {KEY}"),
        format!("Table = {KEY}"),
        format!("ListenPort = {KEY}"),
        format!("PostUp = wg set wg0 private-key {KEY}"),
        format!("FwMark = {KEY}"),
        format!("[{KEY}]"),
        format!("[Peer]\nEndpoint = {KEY}:80"),
        format!("[Peer]\nAllowedIPs = {KEY}"),
        format!("[Peer]\nPresharedKey = {KEY}="),
        format!("[Peer]\nPersistentKeepalive = {KEY}"),
        format!("[Peer]\nPublicKey = {KEY}="),
    ] {
        let told = match parse("f", &format!("[Interface]\n{line}\n")) {
            Ok(parsed) => format!("{:?}", parsed.warnings),
            Err(error) => error.to_string(),
        };
        assert!(!told.contains(&KEY[..20]), "{line}: {told}");
    }
}

#[test]
fn device_names_are_those_of_wg_quick() {
    for name in ["wg0", "a", "my_vpn.de-1+=", "123456789012345"] {
        assert!(is_device_name(name), "{name}");
    }
    for name in ["", "1234567890123456", "a b", "a/b", "ä", ".", "..", "a%d"] {
        assert!(!is_device_name(name), "{name}");
    }
}

fn any_network() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), any::<u8>()).prop_map(|(ip, len)| {
        let bits = if ip.is_ipv4() { 33 } else { 129 };
        IpNet::new(ip, len % bits).unwrap()
    })
}

fn any_peer() -> impl Strategy<Value = Peer> {
    let endpoint = prop_oneof![
        (any::<IpAddr>(), 1u16..).prop_map(|(ip, port)| Endpoint::Address((ip, port).into())),
        ("[a-z][a-z0-9-]{0,20}(\\.[a-z]{1,10}){0,3}", 1u16..)
            .prop_map(|(host, port)| Endpoint::Name(host, port)),
    ];
    (
        any::<[u8; 32]>(),
        any::<Option<[u8; 32]>>(),
        proptest::option::of(endpoint),
        proptest::collection::vec(any_network(), 0..4),
        proptest::option::of(1u16..),
    )
        .prop_map(|(public, shared, endpoint, allowed, keepalive)| Peer {
            public_key: PublicKey(public),
            preshared_key: shared.map(PresharedKey::from_bytes),
            endpoint,
            allowed_ips: allowed.iter().map(IpNet::trunc).collect(),
            persistent_keepalive: keepalive.map(|s| Duration::from_secs(s.into())),
        })
}

fn any_config() -> impl Strategy<Value = Config> {
    let table = prop_oneof![Just(Table::Auto), Just(Table::Off), (1u32..).prop_map(Table::Number)];
    let interface = (
        any::<[u8; 32]>(),
        proptest::collection::vec(any_network(), 0..4),
        proptest::collection::vec(any::<IpAddr>(), 0..3),
        proptest::collection::vec("[a-z]{1,9}\\.[a-z]{2}", 0..3),
        proptest::option::of(MTU_MIN_IPV6..=MTU_MAX),
        proptest::option::of(1u16..),
        table,
    )
        .prop_map(|(private, addresses, dns, search, mtu, listen_port, table)| {
            let private_key = PrivateKey::from_bytes(private);
            Interface { private_key, addresses, dns, search, mtu, listen_port, table }
        });
    let peers = proptest::collection::vec(any_peer(), 0..4);
    (interface, peers).prop_map(|(interface, mut peers)| {
        // A network belongs to one peer, once.
        let mut seen = std::collections::HashSet::new();
        peers.iter_mut().for_each(|peer| peer.allowed_ips.retain(|network| seen.insert(*network)));
        Config { interface, peers }
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_the_same(config in any_config()) {
        let Parsed { config: read, warnings } = parsed(&write(&config));
        prop_assert_eq!(read, config);
        prop_assert_eq!(warnings, []);
    }

    #[test]
    fn no_text_is_a_panic(text in "(\\[[Interfacepr]{4,9}\\]|[A-Za-z]{3,12} ?= ?|[0-9a-f:./,]{1,20}|\\PC|\n){0,40}") {
        let _ = parse("f", &text);
    }
}
